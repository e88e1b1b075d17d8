// SPDX-License-Identifier: MIT OR Apache-2.0
//
// What a process is besides its memory and its files: numbers, name, arguments, environment, credentials, limits,
// priority, umask, personality, and what prctl() has set. All of it must be the same after as before.

#include "guest.h"
#include <grp.h>
#include <linux/capability.h>
#include <sys/auxv.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

struct self {
	pid_t pid, tid;
	uid_t users[3];
	gid_t groups[3], more[16];
	int count, nice, persona, umask_bits, dumpable, no_new_privs, keep_caps, slack, subreaper;
	struct rlimit limits[RLIM_NLIMITS];
	struct __user_cap_data_struct caps[2];
	char name[16], exe[256], cmdline[256], environment[64];
	unsigned long page_size, entry, random[2], clock_ticks;
};

static void read_text(const char *path, char *to, size_t size)
{
	int fd = open(path, O_RDONLY);

	must(fd >= 0 && read(fd, to, size - 1) >= 0 && close(fd) == 0);
}

static struct self look(void)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct self self;

	memset(&self, 0, sizeof(self));
	self.pid = syscall(SYS_getpid);
	self.tid = syscall(SYS_gettid);
	must(getresuid(&self.users[0], &self.users[1], &self.users[2]) == 0);
	must(getresgid(&self.groups[0], &self.groups[1], &self.groups[2]) == 0);
	must((self.count = getgroups(16, self.more)) >= 0);
	self.nice = getpriority(PRIO_PROCESS, 0);
	self.persona = personality(0xffffffff);
	self.umask_bits = umask(0);
	umask(self.umask_bits);
	self.dumpable = prctl(PR_GET_DUMPABLE);
	self.no_new_privs = prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0);
	self.keep_caps = prctl(PR_GET_KEEPCAPS);
	self.slack = prctl(PR_GET_TIMERSLACK);
	for (int i = 0; i < RLIM_NLIMITS; i++)
		must(getrlimit(i, &self.limits[i]) == 0);
	must(syscall(SYS_capget, &header, self.caps) == 0);
	must(prctl(PR_GET_NAME, self.name) == 0);
	must(readlink("/proc/self/exe", self.exe, sizeof(self.exe) - 1) > 0);
	read_text("/proc/self/cmdline", self.cmdline, sizeof(self.cmdline));
	snprintf(self.environment, sizeof(self.environment), "%s", getenv("GO") ? getenv("GO") : "none");
	self.page_size = getauxval(AT_PAGESZ);
	self.entry = getauxval(AT_ENTRY);
	memcpy(self.random, (void *)getauxval(AT_RANDOM), sizeof(self.random));
	self.clock_ticks = getauxval(AT_CLKTCK);
	return self;
}

int main(void)
{
	struct rlimit files = { 777, 888 }, stack;
	gid_t groups[3] = { 5, 1234, 70000 };
	struct self before, after;

	must(setgroups(3, groups) == 0);
	must(setresgid(100, 101, 102) == 0);
	must(setrlimit(RLIMIT_NOFILE, &files) == 0);
	must(getrlimit(RLIMIT_STACK, &stack) == 0);
	stack.rlim_cur = 9 << 20;
	must(setrlimit(RLIMIT_STACK, &stack) == 0);
	must(setpriority(PRIO_PROCESS, 0, 3) == 0);
	umask(0137);
	must(prctl(PR_SET_TIMERSLACK, 77000) == 0);
	must(personality(ADDR_NO_RANDOMIZE) >= 0);
	must(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	// The last: without privileges the rest could not be set.
	must(setresuid(1000, 1001, 1002) == 0);
	must(prctl(PR_SET_DUMPABLE, 1) == 0);
	before = look();
	ready();
	work_until_told();
	after = look();

#define SAME(member)                                                                               \
	do {                                                                                       \
		if (memcmp(&after.member, &before.member, sizeof(after.member)) != 0)              \
			fail(#member " changed");                                                  \
	} while (0)
	same(after.pid, before.pid);
	same(after.tid, before.tid);
	for (int i = 0; i < 3; i++) {
		same(after.users[i], before.users[i]);
		same(after.groups[i], before.groups[i]);
	}
	same(after.count, before.count);
	SAME(more);
	same(after.nice, before.nice);
	same(after.persona, before.persona);
	same(after.umask_bits, before.umask_bits);
	same(after.no_new_privs, before.no_new_privs);
	same(after.keep_caps, before.keep_caps);
	same(after.slack, before.slack);
	same(after.dumpable, before.dumpable);
	SAME(limits);
	SAME(caps);
	if (strcmp(after.name, before.name) != 0 || strcmp(after.exe, before.exe) != 0)
		fail("name %s, program %s; not %s, %s", after.name, after.exe, before.name, before.exe);
	SAME(cmdline);
	SAME(environment);
	same(after.page_size, before.page_size);
	same(after.entry, before.entry);
	SAME(random);
	same(after.clock_ticks, before.clock_ticks);
	passed();
}
