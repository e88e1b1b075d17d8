// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Locks and values of the cluster, over the daemon's socket, for measurements.
//
// locks cost COUNT FILE   in turns, each on a new connection: a call of nothing, a value set, a lock taken that nobody
//                         ever had, one that was used here before and is kept, 256 bytes appended to FILE and brought to
//                         the disk; prints the five medians in nanoseconds
// locks hand SECONDS      takes a lock and gives it up again until the time is over; prints how often it was another's before
//
// The second is run on several nodes at once: who gives the lock up asks again behind the others. Until the others have
// asked the node keeps it, and lends it again: those grants have numbers one after the other, and are not counted.

#include "guest.h"
#include <sys/socket.h>
#include <sys/un.h>

#define SOCKET "/run/ssid/io.unum.Cluster"

static char answer[65536];

static int64_t now_ns(void)
{
	struct timespec t;

	must(clock_gettime(CLOCK_MONOTONIC, &t) == 0);
	return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static int compare(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

	return (x > y) - (x < y);
}

static long long median(int64_t *times, int count)
{
	qsort(times, count, sizeof(*times), compare);
	return times[count / 2];
}

static int reach(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX, .sun_path = SOCKET };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	must(connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0);
	return fd;
}

// Returns nanoseconds until there was an answer, which must not be an error.
static int64_t call(int fd, const char *method, const char *parameters)
{
	int64_t start = now_ns();
	char text[1024];
	int length = snprintf(text, sizeof(text), "{\"method\":\"%s\",\"parameters\":{%s}}", method, parameters) + 1;
	ssize_t got = 0;

	must(length < (int)sizeof(text) && send(fd, text, length, MSG_NOSIGNAL) == length);
	while (got == 0 || answer[got - 1] != 0) {
		ssize_t n = recv(fd, answer + got, sizeof(answer) - got, 0);

		must(n > 0);
		got += n;
	}
	if (strstr(answer, "\"error\""))
		fail("%s: %.300s", method, answer);
	return now_ns() - start;
}

static int64_t take(int fd, const char *name)
{
	char parameters[512];

	must(snprintf(parameters, sizeof(parameters), "\"name\":\"%s\",\"mode\":\"write\",\"wait_ms\":60000", name) <
	     (int)sizeof(parameters));
	return call(fd, "io.unum.Cluster.Acquire", parameters);
}

static int64_t give(int fd, const char *name)
{
	char parameters[512];

	must(snprintf(parameters, sizeof(parameters), "\"name\":\"%s\"", name) < (int)sizeof(parameters));
	return call(fd, "io.unum.Cluster.Release", parameters);
}

static int64_t sync_ns(int fd)
{
	static const char entry[256];
	int64_t start = now_ns();

	must(write(fd, entry, sizeof(entry)) == sizeof(entry) && fdatasync(fd) == 0);
	return now_ns() - start;
}

static void cost(int count, const char *path)
{
	int64_t *nothing = calloc(count, sizeof(int64_t)), *set = calloc(count, sizeof(int64_t)),
		*first = calloc(count, sizeof(int64_t)), *again = calloc(count, sizeof(int64_t)),
		*sync = calloc(count, sizeof(int64_t));
	int file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);

	must(nothing && set && first && again && sync && file >= 0 && count > 0);
	// The first round of all is slower than those that count, and is overwritten.
	for (int i = -1; i < count; i++) {
		int at = i < 0 ? 0 : i, fd = reach();
		char fresh[128];

		snprintf(fresh, sizeof(fresh), "figures/%d/%lld", getpid(), (long long)now_ns());
		// What a connection costs the first time is not meant.
		call(fd, "org.varlink.service.GetInfo", "");
		nothing[at] = call(fd, "org.varlink.service.GetInfo", "");
		set[at] = call(fd, "io.unum.Cluster.SetValue", "\"name\":\"figures\",\"value\":\"eA==\"");
		first[at] = take(fd, fresh);
		give(fd, fresh);
		again[at] = take(fd, "figures");
		give(fd, "figures");
		sync[at] = sync_ns(file);
		close(fd);
	}
	must(unlink(path) == 0);
	say("%lld %lld %lld %lld %lld", median(nothing, count), median(set, count), median(first, count),
	    median(again, count), median(sync, count));
}

static void hand(int seconds)
{
	int64_t end = now_ns() + seconds * 1000000000ll;
	int fd = reach();
	long long last = 0, token;
	long count = 0;

	while (now_ns() < end) {
		take(fd, "handed");
		const char *number = strstr(answer, "\"token\":");

		must(number && sscanf(number, "\"token\":%lld", &token) == 1);
		give(fd, "handed");
		count += token != last + 1;
		last = token;
	}
	say("%ld", count);
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	if (strcmp(what, "cost") == 0 && argc > 3)
		cost(atoi(argv[2]), argv[3]);
	else if (strcmp(what, "hand") == 0 && argc > 2)
		hand(atoi(argv[2]));
	else
		fail("locks %s: no such thing", what);
	return 0;
}
