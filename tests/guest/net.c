// SPDX-License-Identifier: MIT OR Apache-2.0
//
// The network without the product, for measurements. With `tls` as the last word the socket is given kernel TLS
// (1.3, AES-128-GCM, a fixed key on both sides), which is what the product's own links use.
//
// net serve PORT [tls]                              answers the two below, one connection after another
// net ping ADDRESS PORT ASK ANSWER COUNT [tls]         sends ASK bytes, waits for ANSWER bytes; prints nanoseconds
// net stream ADDRESS PORT MIB [tls]                    sends MIB; prints KiB per second
// net send ADDRESS PORT FILE                           sends a file as a stream does; prints nanoseconds
//
// Of times it prints "MEDIAN TENTH NINETIETH".

#include "guest.h"
#include <arpa/inet.h>
#include <linux/tls.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/stat.h>

#define CHUNK (256 * 1024)

enum { PING = 1, SINK = 2 };

struct order {
	uint64_t what, ask, answer;
};

static unsigned char buffer[CHUNK];

static int64_t now_ns(void)
{
	struct timespec t;

	must(clock_gettime(CLOCK_MONOTONIC, &t) == 0);
	return t.tv_sec * 1000000000ll + t.tv_nsec;
}

static void prepare(int fd, bool tls)
{
	struct tls12_crypto_info_aes_gcm_128 key = {
		.info = { .version = TLS_1_3_VERSION, .cipher_type = TLS_CIPHER_AES_GCM_128 },
		.key = "measured sixteen",
		.salt = "salt",
		.iv = "eight iv",
	};

	must(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){ 1 }, sizeof(int)) == 0);
	if (!tls)
		return;
	must(setsockopt(fd, IPPROTO_TCP, TCP_ULP, "tls", 4) == 0);
	must(setsockopt(fd, SOL_TLS, TLS_TX, &key, sizeof(key)) == 0);
	must(setsockopt(fd, SOL_TLS, TLS_RX, &key, sizeof(key)) == 0);
}

static bool get(int fd, void *to, size_t size)
{
	for (size_t done = 0; done < size;) {
		ssize_t n = recv(fd, (char *)to + done, size - done, 0);

		if (n <= 0)
			return false;
		done += n;
	}
	return true;
}

static void put(int fd, const void *from, size_t size)
{
	for (size_t done = 0; done < size;) {
		ssize_t n = send(fd, (const char *)from + done, size - done, MSG_NOSIGNAL);

		must(n > 0);
		done += n;
	}
}

static void serve(int port, bool tls)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port) };
	int listener = socket(AF_INET, SOCK_STREAM, 0);

	must(setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &(int){ 1 }, sizeof(int)) == 0);
	must(bind(listener, (struct sockaddr *)&address, sizeof(address)) == 0 && listen(listener, 5) == 0);
	say("READY");
	for (;;) {
		int fd = accept(listener, NULL, NULL);
		struct order order;

		must(fd >= 0);
		prepare(fd, tls);
		if (get(fd, &order, sizeof(order))) {
			must(order.ask <= CHUNK && order.answer <= CHUNK);
			if (order.what == PING) {
				while (get(fd, buffer, order.ask))
					put(fd, buffer, order.answer);
			} else {
				uint64_t left = order.ask * order.answer;

				while (left && get(fd, buffer, left < CHUNK ? left : CHUNK))
					left -= left < CHUNK ? left : CHUNK;
				put(fd, &left, sizeof(left));
			}
		}
		close(fd);
	}
}

static int reach(const char *host, const char *port, bool tls)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(atoi(port)) };
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	must(inet_aton(host, &address.sin_addr));
	must(connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0);
	prepare(fd, tls);
	return fd;
}

static int compare(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

	return (x > y) - (x < y);
}

static void ping(int fd, uint64_t ask, uint64_t answer, int count)
{
	struct order order = { PING, ask, answer };
	int64_t *times = calloc(count, sizeof(*times));

	must(times && ask <= CHUNK && answer <= CHUNK);
	put(fd, &order, sizeof(order));
	for (int i = -count / 10; i < count; i++) {
		int64_t start = now_ns();

		put(fd, buffer, ask);
		must(get(fd, buffer, answer));
		if (i >= 0)
			times[i] = now_ns() - start;
	}
	qsort(times, count, sizeof(*times), compare);
	say("%lld %lld %lld", (long long)times[count / 2], (long long)times[count / 10],
	    (long long)times[count * 9 / 10]);
}

// Returns nanoseconds until the other side has all of it.
static int64_t push(int fd, int file, uint64_t bytes)
{
	struct order order = { SINK, bytes, 1 };
	uint64_t left = bytes, answer;
	int64_t start;

	// The product of the last two is what counts; each must be small.
	while (order.ask > CHUNK) {
		must(order.ask % 2 == 0);
		order.ask /= 2;
		order.answer *= 2;
	}
	start = now_ns();
	put(fd, &order, sizeof(order));
	while (left) {
		size_t part = left < CHUNK ? left : CHUNK;

		if (file >= 0)
			must(read(file, buffer, part) == (ssize_t)part);
		put(fd, buffer, part);
		left -= part;
	}
	must(get(fd, &answer, sizeof(answer)) && answer == 0);
	return now_ns() - start;
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	bool tls = strcmp(argv[argc - 1], "tls") == 0;

	if (strcmp(what, "serve") == 0 && argc > 2) {
		serve(atoi(argv[2]), tls);
	} else if (strcmp(what, "ping") == 0 && argc > 6) {
		ping(reach(argv[2], argv[3], tls), atoi(argv[4]), atoi(argv[5]), atoi(argv[6]));
	} else if (strcmp(what, "stream") == 0 && argc > 4) {
		uint64_t bytes = (uint64_t)atoi(argv[4]) << 20;

		say("%lld", (long long)(bytes / 1024 * 1000000000.0 / push(reach(argv[2], argv[3], tls), -1, bytes)));
	} else if (strcmp(what, "send") == 0 && argc > 4) {
		int file = open(argv[4], O_RDONLY);
		struct stat status;

		must(file >= 0 && fstat(file, &status) == 0);
		// Cut to whole pages: a fraction of one does not matter, and sizes stay even.
		say("%lld", (long long)push(reach(argv[2], argv[3], false), file, status.st_size & ~(CHUNK - 1ll)));
	} else {
		fail("net %s: no such thing", what);
	}
	return 0;
}
