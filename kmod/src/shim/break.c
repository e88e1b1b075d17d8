// SPDX-License-Identifier: GPL-2.0-only
/* What only a build for tests has: a module that drops something on purpose, for tests that must notice, and whose
 * links wear out fast. */
#include <linux/moduleparam.h>

unsigned int ssi_break;
module_param_named(break, ssi_break, uint, 0444);
MODULE_PARM_DESC(break, "What a move drops: 1 extended registers, 2 signal mask, 4 file offset");

unsigned int ssi_renew_records;
module_param_named(renew, ssi_renew_records, uint, 0444);
MODULE_PARM_DESC(renew, "Records after which a link is to have other keys, 0 for as many as in use");
