// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Open files. Each argument is a test of its own:
//
// files offset PATH   a regular file whose offset two descriptors share, and a third with its own
// files append PATH   a file opened for appending, to which others append meanwhile
// files deleted PATH  a file that has no name any more
// files directory     working directory, a directory to open from, a directory half read
// files devices       /dev/null, zero, full, urandom
// files numbers       descriptors at odd numbers, with and without close-on-exec, non-blocking
// files pipe          a pipe to itself with bytes in it; its end of file and its broken end
// files reader        standard input, byte by byte, until it ends; prints how much it was and its sum
//
// PATH must not exist.

#include "guest.h"
#include <dirent.h>
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

static char at(int fd, off_t offset)
{
	char byte;

	must(pread(fd, &byte, 1, offset) == 1);
	return byte;
}

static char next(int fd)
{
	char byte;

	must(read(fd, &byte, 1) == 1);
	return byte;
}

static void offset(const char *path)
{
	int shared = open(path, O_RDWR | O_CREAT | O_EXCL, 0600), twin = dup(shared), own = open(path, O_RDONLY);
	struct stat before, after;

	must(shared >= 0 && twin >= 0 && own >= 0);
	must(write(shared, "0123456789abcdef", 16) == 16);
	must(lseek(twin, 3, SEEK_SET) == 3);
	must(lseek(own, 7, SEEK_SET) == 7);
	must(fstat(shared, &before) == 0);
	ready();
	work_until_told();
	same(lseek(shared, 0, SEEK_CUR), 3);
	same(next(shared), '3');
	same(next(twin), '4');
	same(lseek(shared, 0, SEEK_CUR), 5);
	same(next(own), '7');
	same(at(own, 15), 'f');
	same(lseek(own, 0, SEEK_CUR), 8);
	must(write(twin, "XY", 2) == 2);
	same(lseek(shared, 0, SEEK_CUR), 7);
	same(at(own, 5), 'X');
	must(pwrite(shared, "Z", 1, 20) == 1);
	must(fstat(own, &after) == 0);
	same(after.st_size, 21);
	same(after.st_mode, before.st_mode);
	same(after.st_uid, before.st_uid);
	same(at(own, 18), 0);
	must(ftruncate(shared, 10) == 0);
	must(fstat(own, &after) == 0);
	same(after.st_size, 10);
	must(fsync(shared) == 0);
	must(write(own, "x", 1) == -1 && errno == EBADF);
}

static void append(const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_APPEND, 0600);

	must(fd >= 0);
	must(write(fd, "before\n", 7) == 7);
	ready();
	work_until_told();
	must(lseek(fd, 0, SEEK_SET) == 0);
	must(write(fd, "after\n", 6) == 6);
	must(fcntl(fd, F_GETFL) & O_APPEND);
}

static void deleted(const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
	char text[6];

	must(fd >= 0 && write(fd, "hidden", 6) == 6 && unlink(path) == 0);
	ready();
	work_until_told();
	must(pread(fd, text, 6, 0) == 6 && memcmp(text, "hidden", 6) == 0);
	must(write(fd, "more", 4) == 4);
	same(lseek(fd, 0, SEEK_END), 10);
	must(access(path, F_OK) == -1 && errno == ENOENT);
}

static uint64_t name_hash(const char *name)
{
	uint64_t hash = 14695981039346656037u;

	while (*name)
		hash = (hash ^ (unsigned char)*name++) * 1099511628211u;
	return hash;
}

static void directory(void)
{
	// One that every machine of the same system has, with the same content.
	static const char *const path = "/usr/lib/x86_64-linux-gnu/gconv";
	int from = open("/usr/share", O_RDONLY | O_DIRECTORY), entries = 0, seen = 0;
	uint64_t all = 0, read_so_far = 0;
	char where[PATH_MAX];
	struct stat before, after;
	struct dirent *entry;
	DIR *listing = opendir(path);

	must(from >= 0 && listing && chdir(path) == 0);
	while ((entry = readdir(listing))) {
		all += name_hash(entry->d_name);
		entries++;
	}
	must(entries > 50);
	rewinddir(listing);
	for (; seen < entries / 2; seen++) {
		must(entry = readdir(listing));
		read_so_far += name_hash(entry->d_name);
	}
	must(fstat(from, &before) == 0);
	ready();
	work_until_told();
	must(getcwd(where, sizeof(where)));
	if (strcmp(where, path) != 0)
		fail("the working directory is %s, not %s", where, path);
	must(access("gconv-modules", R_OK) == 0);
	while ((entry = readdir(listing))) {
		read_so_far += name_hash(entry->d_name);
		seen++;
	}
	same(seen, entries);
	same(read_so_far, all);
	must(fstat(from, &after) == 0);
	must(S_ISDIR(after.st_mode));
	same(after.st_mode, before.st_mode);
	must(faccessat(from, "zoneinfo", F_OK, 0) == 0 || faccessat(from, "perl5", F_OK, 0) == 0 ||
	     faccessat(from, "misc", F_OK, 0) == 0 || faccessat(from, "bash-completion", F_OK, 0) == 0);
	must(fchdir(from) == 0 && getcwd(where, sizeof(where)));
	must(strcmp(where, "/usr/share") == 0);
}

static void devices(void)
{
	int null = open("/dev/null", O_RDWR), zero = open("/dev/zero", O_RDWR), full = open("/dev/full", O_RDWR),
	    random = open("/dev/urandom", O_RDONLY);
	unsigned char bytes[64], none[64] = { 0 };
	struct stat status;

	must(null >= 0 && zero >= 0 && full >= 0 && random >= 0);
	ready();
	work_until_told();
	must(write(null, bytes, 64) == 64 && read(null, bytes, 64) == 0);
	memset(bytes, 7, sizeof(bytes));
	must(read(zero, bytes, 64) == 64);
	check_zero("/dev/zero", bytes, 64);
	must(write(full, bytes, 1) == -1 && errno == ENOSPC);
	must(read(random, bytes, 64) == 64 && memcmp(bytes, none, 64) != 0);
	must(fstat(null, &status) == 0 && S_ISCHR(status.st_mode));
	same(status.st_rdev, makedev(1, 3));
	must(fstat(zero, &status) == 0 && S_ISCHR(status.st_mode));
	same(status.st_rdev, makedev(1, 5));
	same(fcntl(null, F_GETFL) & O_ACCMODE, O_RDWR);
	same(fcntl(random, F_GETFL) & O_ACCMODE, O_RDONLY);
}

static void numbers(void)
{
	int null, ends[2];

	// Whatever was inherited.
	must(close_range(3, ~0u, 0) == 0);
	null = open("/dev/null", O_RDWR);
	must(null >= 0 && pipe2(ends, O_NONBLOCK) == 0);
	must(dup2(null, 77) == 77 && dup3(null, 200, O_CLOEXEC) == 200);
	must(dup2(ends[0], 101) == 101 && dup3(ends[1], 102, O_CLOEXEC) == 102);
	must(close(null) == 0 && close(ends[0]) == 0 && close(ends[1]) == 0);
	ready();
	work_until_told();
	for (int fd = 0; fd < 256; fd++) {
		bool wanted = fd < 3 || fd == 77 || fd == 101 || fd == 102 || fd == 200;
		int flags = fcntl(fd, F_GETFD);

		if ((flags >= 0) != wanted)
			fail("descriptor %d is %s", fd, wanted ? "gone" : "open, and was not");
		if (wanted)
			same(flags, fd == 102 || fd == 200 ? FD_CLOEXEC : 0);
	}
	must(fcntl(101, F_GETFL) & O_NONBLOCK);
	must(!(fcntl(77, F_GETFL) & O_NONBLOCK));
	char byte;

	must(read(101, &byte, 1) == -1 && errno == EAGAIN);
	must(write(102, "x", 1) == 1 && read(101, &byte, 1) == 1 && byte == 'x');
	same(open("/dev/null", O_RDONLY), 3);
}

static void pipes(void)
{
	static unsigned char sent[3000], got[4000];
	int ends[2], broken[2], waiting;
	struct pollfd polled;

	must(pipe(ends) == 0 && pipe(broken) == 0);
	fill(sent, sizeof(sent), 5);
	must(write(ends[1], sent, sizeof(sent)) == sizeof(sent));
	signal(SIGPIPE, SIG_IGN);
	ready();
	work_until_told();
	polled = (struct pollfd){ .fd = ends[0], .events = POLLIN };
	must(poll(&polled, 1, 5000) == 1 && polled.revents == POLLIN);
	must(ioctl(ends[0], FIONREAD, &waiting) == 0);
	same(waiting, sizeof(sent));
	must(read(ends[0], got, 1000) == 1000);
	must(read(ends[0], got + 1000, 2500) == 2000);
	must(memcmp(got, sent, sizeof(sent)) == 0);
	polled.revents = 0;
	must(poll(&polled, 1, 0) == 0);
	must(write(ends[1], "again", 5) == 5 && read(ends[0], got, 10) == 5 && memcmp(got, "again", 5) == 0);
	must(lseek(ends[0], 0, SEEK_CUR) == -1 && errno == ESPIPE);
	must(close(ends[1]) == 0);
	must(read(ends[0], got, 1) == 0);
	must(close(broken[0]) == 0);
	must(write(broken[1], "x", 1) == -1 && errno == EPIPE);
}

static void reader(void)
{
	unsigned long long count = 0, sum = 0;
	unsigned char bytes[4096];
	ssize_t size;

	ready();
	while ((size = read(STDIN_FILENO, bytes, sizeof(bytes))) > 0) {
		for (ssize_t i = 0; i < size; i++)
			sum = sum * 31 + bytes[i];
		count += size;
	}
	must(size == 0);
	say("READ %llu %llu", count, sum);
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "", *path = argc > 2 ? argv[2] : "";

	if (strcmp(what, "offset") == 0)
		offset(path);
	else if (strcmp(what, "append") == 0)
		append(path);
	else if (strcmp(what, "deleted") == 0)
		deleted(path);
	else if (strcmp(what, "directory") == 0)
		directory();
	else if (strcmp(what, "devices") == 0)
		devices();
	else if (strcmp(what, "numbers") == 0)
		numbers();
	else if (strcmp(what, "pipe") == 0)
		pipes();
	else if (strcmp(what, "reader") == 0)
		reader();
	else
		fail("files %s: no such test", what);
	passed();
}
