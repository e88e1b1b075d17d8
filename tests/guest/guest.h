/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/*
 * What the test programs share.
 *
 * A program sets a state, says READY, goes on until it is told, then checks the state. It ends with status
 * PASSED, or with FAILED and a line that says what differs. It knows nothing of a cluster: every one of them
 * passes on a plain machine.
 *
 * Telling is done through the file system of whichever machine runs the program: the K-th told() is true once
 * $GO.K exists. Without GO in the environment everything is told at once. Programs that must be seen computing
 * poll told() between pieces of work; the others sleep in tell_wait().
 *
 * Lines go out by one write() each, so that a reader never sees half of one. A failure is also written to
 * $GO.failed, for programs whose output goes nowhere.
 */
#ifndef GUEST_H
#define GUEST_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define PASSED 33
#define FAILED 1

static inline void say_to(int fd, const char *format, va_list args)
{
	char line[512];
	int length = vsnprintf(line, sizeof(line) - 1, format, args);

	if (length > (int)sizeof(line) - 2)
		length = sizeof(line) - 2;
	line[length++] = '\n';
	for (int done = 0; done < length;) {
		ssize_t n = write(fd, line + done, length - done);

		if (n <= 0)
			return;
		done += n;
	}
}

/* One line on standard output. */
__attribute__((format(printf, 1, 2))) static inline void say(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	say_to(STDOUT_FILENO, format, args);
	va_end(args);
}

__attribute__((format(printf, 1, 2), noreturn)) static inline void fail(const char *format, ...)
{
	const char *go = getenv("GO");
	char line[480];
	va_list args;

	va_start(args, format);
	vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	if (go) {
		char path[PATH_MAX];
		int fd;

		snprintf(path, sizeof(path), "%s.failed", go);
		fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
		if (fd >= 0) {
			dprintf(fd, "%s\n", line);
			close(fd);
		}
	}
	say("FAILED: %s", line);
	_exit(FAILED);
}

/* Fails with the line's own text and errno. For what must succeed on any Linux. */
#define must(condition)                                                                            \
	do {                                                                                       \
		if (!(condition))                                                                  \
			fail("%s:%d: %s (errno %d, %s)", __FILE_NAME__, __LINE__, #condition, errno, \
			     strerror(errno));                                                     \
	} while (0)

/* Fails unless two numbers are equal, and shows both. */
#define same(got, want)                                                                            \
	do {                                                                                       \
		long long got_ = (long long)(got), want_ = (long long)(want);                      \
		if (got_ != want_)                                                                 \
			fail("%s:%d: %s is %lld (%#llx), not %lld (%#llx)", __FILE_NAME__, __LINE__, #got, \
			     got_, got_, want_, want_);                                            \
	} while (0)

static inline void ready(void)
{
	say("READY");
}

__attribute__((noreturn)) static inline void passed(void)
{
	say("PASSED");
	exit(PASSED);
}

/* Whether the next word was given. Each true answer uses one up. */
static inline bool told(void)
{
	static int words;
	const char *go = getenv("GO");
	char path[PATH_MAX];

	if (!go)
		return true;
	snprintf(path, sizeof(path), "%s.%d", go, words + 1);
	if (access(path, F_OK) != 0)
		return false;
	words++;
	return true;
}

/* Burns some milliseconds of processor time and nothing else. The result is checked: it is always the same. */
static inline void work(void)
{
	uint64_t x = 88172645463325252u;

	for (int i = 0; i < 1000000; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		__asm__ volatile("" : "+r"(x));
	}
	if (x != 0x652cf958c2958ad6u)
		fail("work() computed %#llx", (unsigned long long)x);
}

/* Computes until told. */
static inline void work_until_told(void)
{
	do
		work();
	while (!told());
}

/* Sleeps in short naps until told. */
static inline void tell_wait(void)
{
	while (!told()) {
		struct timespec nap = { 0, 20 * 1000 * 1000 };

		while (nanosleep(&nap, &nap) != 0)
			must(errno == EINTR);
	}
}

static inline int64_t now_ms(clockid_t clock)
{
	struct timespec t;

	must(clock_gettime(clock, &t) == 0);
	return t.tv_sec * 1000ll + t.tv_nsec / 1000000;
}

/* The byte that belongs at an offset of a pattern; patterns with different seeds differ. */
static inline unsigned char pattern(size_t offset, unsigned int seed)
{
	return (offset * 7 + (offset >> 12) * 13 + seed * 31 + 1) & 0xff;
}

static inline void fill(void *at, size_t length, unsigned int seed)
{
	unsigned char *p = at;

	for (size_t i = 0; i < length; i++)
		p[i] = pattern(i, seed);
}

/* Counts the bytes that differ from the pattern, and fails naming the first if there is one. */
static inline void check_fill(const char *what, const void *at, size_t length, unsigned int seed)
{
	const unsigned char *p = at;
	size_t bad = 0, first = 0;

	for (size_t i = 0; i < length; i++)
		if (p[i] != pattern(i, seed) && bad++ == 0)
			first = i;
	if (bad)
		fail("%s: %zu of %zu bytes differ, the first at %#zx: %#x instead of %#x", what, bad, length, first,
		     p[first], pattern(first, seed));
}

static inline void check_zero(const char *what, const void *at, size_t length)
{
	const unsigned char *p = at;
	size_t bad = 0, first = 0;

	for (size_t i = 0; i < length; i++)
		if (p[i] != 0 && bad++ == 0)
			first = i;
	if (bad)
		fail("%s: %zu of %zu bytes are not zero, the first at %#zx: %#x", what, bad, length, first, p[first]);
}

#endif
