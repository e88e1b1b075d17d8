// SPDX-License-Identifier: GPL-2.0-only
/* What only a build for tests has: a module that drops something on purpose, for tests that must notice. */
#include <linux/moduleparam.h>

unsigned int ssi_break;
module_param_named(break, ssi_break, uint, 0444);
MODULE_PARM_DESC(break, "What a move drops: 1 extended registers, 2 signal mask, 4 file offset");
