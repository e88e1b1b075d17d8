// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Memory of every kind, and what may be done with it. Each argument is a test of its own:
//
// memory hold [MIB]   patterns in heap, stack, data, bss, thread-local storage, mappings of all protections; holes
// memory grow         brk and the stack grow
// memory discard      MADV_DONTNEED, MADV_FREE and munmap of pages nobody has looked at since
// memory remap        mremap: growth, a new place, shrinking
// memory protect      mprotect back and forth, beside fresh mappings
// memory fork         a child sees everything; writes on one side stay there
// memory kernel       system calls that read and write pages nobody has looked at since
// memory mapped PATH  files mapped: private with changes of its own, private of a file without a name, shared read-only
// memory beside       a file mapped whose pages the kernel keeps in large folios, some changed: looks at the others first
// memory loop [MIB]   computes over its memory until told, changing all of it: dirty while it moves
//
// "Cold" memory is written before READY and not touched until told: after a move it is what has not been fetched.

#include "guest.h"
#include <signal.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <sys/wait.h>

#define PAGE 4096ul
#define COLD (256 * PAGE)

static unsigned char in_bss[40 * PAGE];
static unsigned char in_data[20 * PAGE] = { 1 };
static __thread unsigned char in_tls[1000];

static unsigned char *map(size_t length, int protection)
{
	void *at = mmap(NULL, length, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	must(at != MAP_FAILED);
	return at;
}

static unsigned char *cold(unsigned int seed)
{
	unsigned char *at = map(COLD, PROT_READ | PROT_WRITE);

	fill(at, COLD, seed);
	return at;
}

static int reap(pid_t child)
{
	int status;

	must(child > 0);
	must(waitpid(child, &status, 0) == child);
	return status;
}

static void hold(size_t mib)
{
	unsigned char on_stack[30 * PAGE];
	size_t length = mib << 20;
	unsigned char *heap = malloc(300 * 1000), *big = malloc(length), *brk_end = sbrk(3 * PAGE);
	unsigned char *none = cold(20), *only_read = cold(21), *holes = cold(22), *untouched = map(COLD, PROT_READ | PROT_WRITE);
	unsigned char *thp, *program = map(PAGE, PROT_READ | PROT_WRITE);
	static const unsigned char code[] = { 0xb8, 0x2a, 0, 0, 0, 0xc3 }; // mov $42, %eax; ret

	must(heap && big && brk_end != (void *)-1);
	fill(on_stack, sizeof(on_stack), 10);
	fill(heap, 300 * 1000, 11);
	fill(big, length, 12);
	fill(brk_end, 3 * PAGE, 13);
	fill(in_bss, sizeof(in_bss), 14);
	fill(in_data, sizeof(in_data), 15);
	fill(in_tls, sizeof(in_tls), 16);
	must(mprotect(none, COLD, PROT_NONE) == 0);
	must(mprotect(only_read, COLD, PROT_READ) == 0);
	// Every second page of it is a hole again, which must stay zero and not come back.
	for (size_t page = 0; page < COLD; page += 2 * PAGE)
		must(madvise(holes + page, PAGE, MADV_DONTNEED) == 0);
	// Aligned for huge pages, whether the system gives any or not.
	thp = map(8 << 20, PROT_READ | PROT_WRITE);
	thp += -(uintptr_t)thp & ((2 << 20) - 1);
	(void)!madvise(thp, 4 << 20, MADV_HUGEPAGE);
	fill(thp, 4 << 20, 17);
	memcpy(program, code, sizeof(code));
	must(mprotect(program, PAGE, PROT_READ | PROT_EXEC) == 0);

	ready();
	work_until_told();

	check_fill("stack", on_stack, sizeof(on_stack), 10);
	check_fill("heap", heap, 300 * 1000, 11);
	check_fill("large heap block", big, length, 12);
	check_fill("brk", brk_end, 3 * PAGE, 13);
	check_fill("bss", in_bss, sizeof(in_bss), 14);
	check_fill("data", in_data, sizeof(in_data), 15);
	check_fill("thread-local storage", in_tls, sizeof(in_tls), 16);
	check_fill("huge pages", thp, 4 << 20, 17);
	check_zero("untouched mapping", untouched, COLD);
	for (size_t page = 0; page < COLD; page += PAGE)
		if (page / PAGE % 2 == 0)
			check_zero("hole", holes + page, PAGE);
		else
			for (size_t i = page; i < page + PAGE; i++)
				same(holes[i], pattern(i, 22));
	same(((int (*)(void))program)(), 42);
	check_fill("read-only mapping", only_read, COLD, 21);
	// Protections hold: the kernel, asked to read through them, may not.
	int ends[2];

	must(pipe(ends) == 0);
	must(write(ends[1], none, 1) == -1 && errno == EFAULT);
	must(write(ends[1], "x", 1) == 1);
	must(read(ends[0], only_read, 1) == -1 && errno == EFAULT);
	must(mprotect(none, COLD, PROT_READ) == 0);
	check_fill("mapping without access", none, COLD, 20);
}

static size_t deep(size_t levels)
{
	volatile unsigned char frame[PAGE];

	frame[0] = levels;
	frame[PAGE - 1] = levels >> 8;
	if (levels == 0)
		return 0;
	size_t below = deep(levels - 1);

	same(frame[0], levels & 0xff);
	same(frame[PAGE - 1], levels >> 8 & 0xff);
	return below + 1;
}

static void grow(void)
{
	unsigned char *old = sbrk(5 * PAGE), *end = sbrk(0);

	fill(old, 5 * PAGE, 30);
	deep(20);
	ready();
	work_until_told();
	// 4 MiB of stack, most of it for the first time.
	same(deep(1000), 1000);
	must(sbrk(0) == end);
	unsigned char *more = sbrk(1 << 20);

	must(more == end);
	check_zero("grown brk", more, 1 << 20);
	fill(more, 1 << 20, 31);
	check_fill("brk before growth", old, 5 * PAGE, 30);
	check_fill("grown brk", more, 1 << 20, 31);
	must(brk(end) == 0);
	must(sbrk(1 << 20) == end);
	check_zero("brk shrunk and grown again", end, 1 << 20);
	void *blocks[50];

	for (int i = 0; i < 50; i++) {
		must(blocks[i] = malloc(1000 * (i + 1)));
		fill(blocks[i], 1000 * (i + 1), i);
	}
	for (int i = 0; i < 50; i++) {
		check_fill("malloc", blocks[i], 1000 * (i + 1), i);
		free(blocks[i]);
	}
}

static void discard(void)
{
	unsigned char *whole = cold(40), *middle = cold(41), *lazy = cold(42), *unmapped = cold(43), *replaced = cold(44);

	ready();
	work_until_told();
	must(madvise(whole, COLD, MADV_DONTNEED) == 0);
	check_zero("after MADV_DONTNEED", whole, COLD);
	fill(whole, COLD, 45);
	check_fill("written after MADV_DONTNEED", whole, COLD, 45);

	size_t third = COLD / PAGE / 3 * PAGE;

	// One page of what goes is looked at first.
	same(middle[third], pattern(third, 41));
	must(madvise(middle + third, third, MADV_DONTNEED) == 0);
	check_zero("the middle, discarded", middle + third, third);
	check_fill("before the discarded middle", middle, third, 41);
	for (size_t i = 2 * third; i < COLD; i++)
		same(middle[i], pattern(i, 41));

	// The kernel may keep a page or drop it, but not mix: each is old or zero.
	must(madvise(lazy, COLD, MADV_FREE) == 0);
	for (size_t page = 0; page < COLD; page += PAGE) {
		bool zero = lazy[page] == 0 && lazy[page + 1] == 0;

		for (size_t i = page; i < page + PAGE; i++)
			same(lazy[i], zero ? 0 : pattern(i, 42));
	}

	must(munmap(unmapped + third, third) == 0);
	must(mmap(unmapped + third, third, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE,
		  -1, 0) == unmapped + third);
	check_zero("mapped where something was unmapped", unmapped + third, third);
	check_fill("before it", unmapped, third, 43);

	must(mmap(replaced, third, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
	     replaced);
	check_zero("mapped over something", replaced, third);
	for (size_t i = third; i < COLD; i++)
		same(replaced[i], pattern(i, 44));
}

static void remap(void)
{
	unsigned char *area = map(4 * COLD, PROT_READ | PROT_WRITE), *grown = area, *moved = cold(51), *shrunk = cold(52);

	fill(grown, COLD, 50);
	must(munmap(area + COLD, 3 * COLD) == 0);
	ready();
	work_until_told();
	grown = mremap(grown, COLD, 2 * COLD, MREMAP_MAYMOVE);
	must(grown != MAP_FAILED);
	check_fill("grown by mremap", grown, COLD, 50);
	check_zero("what mremap added", grown + COLD, COLD);
	fill(grown + COLD, COLD, 53);
	check_fill("written after mremap", grown + COLD, COLD, 53);

	unsigned char *elsewhere = map(COLD, PROT_NONE);

	must(mremap(moved, COLD, COLD, MREMAP_MAYMOVE | MREMAP_FIXED, elsewhere) == elsewhere);
	check_fill("moved by mremap", elsewhere, COLD, 51);

	must(mremap(shrunk, COLD, COLD / 2, 0) == shrunk);
	check_fill("shrunk by mremap", shrunk, COLD / 2, 52);
}

static void protect(void)
{
	unsigned char *areas[8];

	for (int i = 0; i < 8; i++)
		areas[i] = cold(60 + i);
	ready();
	work_until_told();
	for (int i = 0; i < 8; i++) {
		// A neighbour of the same kind, which the kernel may join with what is cold.
		unsigned char *fresh = map(COLD, PROT_READ | PROT_WRITE);

		fill(fresh, PAGE, 70);
		must(mprotect(areas[i], COLD / 2, PROT_READ) == 0);
		must(mprotect(fresh, COLD / 2, PROT_READ) == 0);
		must(mprotect(areas[i], COLD, PROT_NONE) == 0);
		must(mprotect(areas[i] + COLD / 4, COLD / 4, PROT_READ | PROT_WRITE) == 0);
		must(mprotect(areas[i], COLD, PROT_READ | PROT_WRITE) == 0);
		must(mprotect(fresh, COLD, PROT_READ | PROT_WRITE) == 0);
		check_fill("fresh neighbour", fresh, PAGE, 70);
		check_zero("rest of the fresh neighbour", fresh + PAGE, COLD - PAGE);
	}
	for (int i = 0; i < 8; i++)
		check_fill("after mprotect", areas[i], COLD, 60 + i);
}

static void forks(void)
{
	unsigned char *first = cold(80), *second = cold(81), *third = cold(82), *gone = cold(83);
	pid_t child;

	ready();
	work_until_told();
	must(madvise(gone, COLD, MADV_DONTNEED) == 0);
	child = fork();
	if (child == 0) {
		check_fill("the child's view", first, COLD, 80);
		fill(first, COLD, 85);
		check_zero("what the parent had discarded", gone, COLD);
		must(madvise(third, COLD / 2, MADV_DONTNEED) == 0);
		check_zero("what the child discarded", third, COLD / 2);
		unsigned char *more = malloc(3 << 20);

		must(more);
		fill(more, 3 << 20, 86);
		check_fill("the child's own", more, 3 << 20, 86);
		_exit(42);
	}
	fill(second, COLD, 84);
	int status = reap(child);

	if (!WIFEXITED(status) || WEXITSTATUS(status) != 42)
		fail("the child ended with status %#x", status);
	check_fill("what the child wrote over", first, COLD, 80);
	check_fill("what the parent wrote", second, COLD, 84);
	check_fill("what the child discarded", third, COLD, 82);
	check_zero("what the parent discarded", gone, COLD);

	// A grandchild, after the child is gone.
	child = fork();
	if (child == 0) {
		pid_t grandchild = fork();

		if (grandchild == 0) {
			check_fill("the grandchild's view", third, COLD, 82);
			_exit(43);
		}
		status = reap(grandchild);
		_exit(WIFEXITED(status) ? WEXITSTATUS(status) + 1 : 1);
	}
	status = reap(child);
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 44)
		fail("the second child ended with status %#x", status);
}

static void kernel(void)
{
	unsigned char *source = cold(90), *target = cold(91), *random = cold(92), *vector = cold(93);
	unsigned char back[8 * PAGE];
	int ends[2];

	ready();
	work_until_told();
	must(pipe(ends) == 0);
	// Read by the kernel, from pages not fetched.
	must(write(ends[1], source + PAGE - 100, 8 * PAGE) == 8 * PAGE);
	must(read(ends[0], back, sizeof(back)) == sizeof(back));
	must(memcmp(back, source + PAGE - 100, sizeof(back)) == 0);
	check_fill("what the kernel read", source, COLD, 90);
	// Written by the kernel, in the middle of pages not fetched.
	fill(back, sizeof(back), 94);
	must(write(ends[1], back, sizeof(back)) == sizeof(back));
	must(read(ends[0], target + 3 * PAGE + 77, sizeof(back)) == sizeof(back));
	must(memcmp(target + 3 * PAGE + 77, back, sizeof(back)) == 0);
	for (size_t i = 0; i < COLD; i++)
		if (i < 3 * PAGE + 77 || i >= 3 * PAGE + 77 + sizeof(back))
			same(target[i], pattern(i, 91));
	// A path and vectors there.
	memcpy(random + 2 * PAGE - 3, "/dev/null", 10);
	must(access((char *)random + 2 * PAGE - 3, W_OK) == 0);
	struct iovec parts[2] = { { vector + PAGE, 10 }, { vector + 20 * PAGE, 10 } };

	must(writev(ends[1], parts, 2) == 20);
	must(read(ends[0], back, 20) == 20);
	for (int i = 0; i < 10; i++) {
		same(back[i], pattern(PAGE + i, 93));
		same(back[10 + i], pattern(20 * PAGE + i, 93));
	}
	struct timespec *when = (void *)(vector + 30 * PAGE);

	must(clock_gettime(CLOCK_MONOTONIC_RAW, when) == 0 && when->tv_nsec < 1000000000);
}

static unsigned char *map_file(const char *path, int flags, bool keep)
{
	int fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
	unsigned char bytes[8 * PAGE], *at;

	must(fd >= 0);
	fill(bytes, sizeof(bytes), 100);
	for (int i = 0; i < 8; i++)
		must(write(fd, bytes, sizeof(bytes)) == sizeof(bytes));
	at = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE, flags, fd, 0);
	must(at != MAP_FAILED && close(fd) == 0 && (keep || unlink(path) == 0));
	return at;
}

static void mapped(const char *path)
{
	static const char *const common = "/usr/lib/x86_64-linux-gnu/gconv/gconv-modules";
	int fd = open(common, O_RDONLY);
	unsigned char *private, *nameless, *shared;
	size_t length = fd >= 0 ? lseek(fd, 0, SEEK_END) : 0;
	uint64_t before = 0, after = 0;

	must(length > 0);
	shared = mmap(NULL, length, PROT_READ, MAP_SHARED, fd, 0);
	must(shared != MAP_FAILED && close(fd) == 0);
	for (size_t i = 0; i < length; i++)
		before = before * 31 + shared[i];
	private = map_file(path, MAP_PRIVATE, true);
	memset(private + 3 * PAGE, 0x77, PAGE);
	memset(private + 20 * PAGE, 0x77, 1);
	char second[PATH_MAX];

	snprintf(second, sizeof(second), "%s.gone", path);
	nameless = map_file(second, MAP_PRIVATE, false);
	memset(nameless + 9 * PAGE, 0x78, PAGE);
	ready();
	work_until_told();
	for (size_t i = 0; i < 64 * PAGE; i++) {
		bool changed = i / PAGE == 3 || i == 20 * PAGE;

		same(private[i], changed ? 0x77 : pattern(i % (8 * PAGE), 100));
		same(nameless[i], i / PAGE == 9 ? 0x78 : pattern(i % (8 * PAGE), 100));
	}
	for (size_t i = 0; i < length; i++)
		after = after * 31 + shared[i];
	same(after, before);
	fill(private, 64 * PAGE, 101);
	check_fill("written after all", private, 64 * PAGE, 101);
}

static void beside(void)
{
	const size_t length = 256 * PAGE;
	unsigned char *private, *want = map(length, PROT_READ | PROT_WRITE);
	int fd = open("/usr/lib/x86_64-linux-gnu/libc.a", O_RDONLY);

	off_t from = fd >= 0 ? lseek(fd, -(off_t)length, SEEK_END) & -(off_t)PAGE : -1;

	// It was read from end to end, and towards the end the kernel reads ahead in ever larger pieces.
	must(from > 0 && pread(fd, want, length, from) == (ssize_t)length);
	private = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, from);
	must(private != MAP_FAILED && close(fd) == 0);
	for (size_t page = 0; page < length; page += 8 * PAGE) {
		memset(want + page, 0x79, PAGE);
		memset(private + page, 0x79, PAGE);
	}
	ready();
	work_until_told();
	for (size_t page = 0; page < length; page += PAGE)
		if (page / PAGE % 8 != 0 && memcmp(private + page, want + page, PAGE) != 0)
			fail("page %zu is not the file's", page / PAGE);
	for (size_t page = 0; page < length; page += 8 * PAGE)
		if (memcmp(private + page, want + page, PAGE) != 0)
			fail("page %zu is not as it was changed", page / PAGE);
}

static void loop(size_t mib)
{
	size_t words = (mib << 20) / 8;
	uint64_t *data = malloc(words * 8), round = 0;

	must(data);
	for (size_t i = 0; i < words; i++)
		data[i] = i;
	ready();
	do {
		for (size_t i = 0; i < words; i++) {
			if (data[i] != i * (round + 1))
				fail("word %zu in round %llu is %#llx", i, (unsigned long long)round,
				     (unsigned long long)data[i]);
			data[i] += i;
		}
		round++;
	} while (!told());
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";
	size_t mib = argc > 2 ? atoi(argv[2]) : 4;

	if (strcmp(what, "hold") == 0)
		hold(mib);
	else if (strcmp(what, "grow") == 0)
		grow();
	else if (strcmp(what, "discard") == 0)
		discard();
	else if (strcmp(what, "remap") == 0)
		remap();
	else if (strcmp(what, "protect") == 0)
		protect();
	else if (strcmp(what, "fork") == 0)
		forks();
	else if (strcmp(what, "kernel") == 0)
		kernel();
	else if (strcmp(what, "mapped") == 0)
		mapped(argc > 2 ? argv[2] : "/tmp/mapped");
	else if (strcmp(what, "beside") == 0)
		beside();
	else if (strcmp(what, "loop") == 0)
		loop(mib);
	else
		fail("memory %s: no such test", what);
	passed();
}
