// SPDX-License-Identifier: GPL-2.0-only
/* Wrappers around tracepoints, which the kernel names in its own tables only. */
#include <linux/module.h>
#include <linux/string.h>
#include <linux/tracepoint.h>
#include "link.h"

struct search {
	const char *name;
	struct tracepoint *found;
};

static void look(struct tracepoint *tp, void *data)
{
	struct search *s = data;

	if (!strcmp(tp->name, s->name))
		s->found = tp;
}

struct tracepoint *ssi_tracepoint_find(const char *name)
{
	struct search s = { .name = name };

	for_each_kernel_tracepoint(look, &s);
	return s.found;
}

void ssi_tracepoint_synchronize(void)
{
	tracepoint_synchronize_unregister();
}
