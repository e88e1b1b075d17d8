// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Eight threads and the one that started them, each with something of its own:
//
// threads pass    they pass a token round with mutexes and condition variables, and compute in between
// threads mixed   one computes, others wait in a timed and an endless futex, in poll, in nanosleep, at a barrier
// threads leader  the first thread ends at once; the others go on
// threads churn   threads that come and go all the time
//
// Everywhere: thread ids stay, thread-local storage and floating point hold, joining works.

#include "guest.h"
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sys/syscall.h>

#define THREADS 8

static __thread int own = -1;
static __thread unsigned char own_block[500];
static pid_t ids[THREADS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turn_changed[THREADS];
static int turn, rounds;
static bool stop;

// Thread i's own series: exact in floating point, so any lost bit shows.
struct series {
	double sum;
	long terms;
};

static void add(struct series *series)
{
	for (int i = 0; i < 20000; i++) {
		series->sum += 0.25 * (own + 1);
		series->terms++;
	}
	if (series->sum != 0.25 * (own + 1) * series->terms)
		fail("thread %d: its sum is %f after %ld terms", own, series->sum, series->terms);
}

static void begin(int number)
{
	own = number;
	fill(own_block, sizeof(own_block), number);
	ids[number] = gettid();
}

static void verify(int number)
{
	same(own, number);
	check_fill("a thread's own block", own_block, sizeof(own_block), number);
	same(gettid(), ids[number]);
	same(syscall(SYS_gettid), ids[number]);
}

static void *pass_on(void *argument)
{
	int number = (intptr_t)argument;
	struct series series = { 0, 0 };

	begin(number);
	pthread_mutex_lock(&lock);
	for (;;) {
		while (turn != number && !stop)
			pthread_cond_wait(&turn_changed[number], &lock);
		if (stop)
			break;
		add(&series);
		verify(number);
		turn = (number + 1) % THREADS;
		rounds += turn == 0;
		pthread_cond_signal(&turn_changed[turn]);
	}
	pthread_mutex_unlock(&lock);
	verify(number);
	return (void *)(intptr_t)(number * 11);
}

static void start(pthread_t *threads, int count, void *(*body)(void *))
{
	for (intptr_t i = 0; i < count; i++) {
		must(pthread_create(&threads[i], NULL, body, (void *)i) == 0);
		// So that nobody is READY before every thread has begun.
		while (__atomic_load_n(&ids[i], __ATOMIC_ACQUIRE) == 0)
			sched_yield();
	}
}

static void join(pthread_t *threads, int count)
{
	for (int i = 0; i < count; i++) {
		void *result;

		must(pthread_join(threads[i], &result) == 0);
		same((intptr_t)result, i * 11);
	}
}

static void pass(void)
{
	pthread_t threads[THREADS];
	int before;

	for (int i = 0; i < THREADS; i++)
		pthread_cond_init(&turn_changed[i], NULL);
	start(threads, THREADS, pass_on);
	ready();
	tell_wait();
	pthread_mutex_lock(&lock);
	before = rounds;
	pthread_mutex_unlock(&lock);
	// It still goes round now.
	for (int tries = 0; __atomic_load_n(&rounds, __ATOMIC_RELAXED) < before + 3; tries++) {
		must(tries < 3000);
		usleep(10000);
	}
	pthread_mutex_lock(&lock);
	stop = true;
	for (int i = 0; i < THREADS; i++)
		pthread_cond_broadcast(&turn_changed[i]);
	pthread_mutex_unlock(&lock);
	join(threads, THREADS);
}

static uint32_t word;
static pthread_barrier_t barrier;

static void *one_of_each(void *argument)
{
	int number = (intptr_t)argument;
	struct series series = { 0, 0 };
	struct timespec t;

	begin(number);
	switch (number) {
	case 0:
	case 1:
		while (!__atomic_load_n(&stop, __ATOMIC_RELAXED))
			add(&series);
		break;
	case 2: // woken by the first thread
		while (__atomic_load_n(&word, __ATOMIC_ACQUIRE) == 0)
			syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
		break;
	case 3: // woken by nobody, so it has to wake by itself, again and again
		while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
			static pthread_mutex_t mine = PTHREAD_MUTEX_INITIALIZER;
			static pthread_cond_t never = PTHREAD_COND_INITIALIZER;

			clock_gettime(CLOCK_REALTIME, &t);
			t.tv_sec += 1;
			pthread_mutex_lock(&mine);
			must(pthread_cond_timedwait(&never, &mine, &t) == ETIMEDOUT);
			pthread_mutex_unlock(&mine);
		}
		break;
	case 4:
		while (!__atomic_load_n(&stop, __ATOMIC_RELAXED))
			must(poll(NULL, 0, 300) == 0);
		break;
	case 5:
		while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
			t = (struct timespec){ 0, 300 * 1000 * 1000 };
			must(nanosleep(&t, NULL) == 0);
		}
		break;
	default:
		pthread_barrier_wait(&barrier);
	}
	verify(number);
	return (void *)(intptr_t)(number * 11);
}

static void mixed(void)
{
	pthread_t threads[THREADS];

	must(pthread_barrier_init(&barrier, NULL, 3) == 0);
	start(threads, THREADS, one_of_each);
	ready();
	tell_wait();
	__atomic_store_n(&stop, true, __ATOMIC_RELEASE);
	__atomic_store_n(&word, 1, __ATOMIC_RELEASE);
	syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
	pthread_barrier_wait(&barrier);
	join(threads, THREADS);
}

static pthread_t first;

static void *outlive(void *argument)
{
	struct series series = { 0, 0 };

	begin((intptr_t)argument);
	must(pthread_join(first, NULL) == 0);
	ready();
	do
		add(&series);
	while (!told());
	verify((intptr_t)argument);
	passed();
}

static void *short_life(void *argument)
{
	(void)argument;
	own = 5;
	work();
	same(own, 5);
	return &lock;
}

static void churn(void)
{
	ready();
	do {
		pthread_t threads[4];
		void *result;

		for (int i = 0; i < 4; i++)
			must(pthread_create(&threads[i], NULL, short_life, NULL) == 0);
		for (int i = 0; i < 4; i++) {
			must(pthread_join(threads[i], &result) == 0);
			must(result == &lock);
		}
	} while (!told());
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	if (strcmp(what, "pass") == 0) {
		pass();
	} else if (strcmp(what, "mixed") == 0) {
		mixed();
	} else if (strcmp(what, "leader") == 0) {
		pthread_t thread;

		first = pthread_self();
		must(pthread_create(&thread, NULL, outlive, NULL) == 0);
		pthread_exit(NULL);
	} else if (strcmp(what, "churn") == 0) {
		churn();
	} else {
		fail("threads %s: no such test", what);
	}
	passed();
}
