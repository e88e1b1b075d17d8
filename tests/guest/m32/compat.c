// SPDX-License-Identifier: MIT OR Apache-2.0
//
// A 32-bit program without any library: says READY, computes for half a second at a time until $GO.1 exists, ends
// with 33. The environment lies behind the arguments on the first stack.

static int call(int number, int a, int b, int c)
{
	int result;

	__asm__ volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "memory");
	return result;
}

enum { EXIT = 1, WRITE = 4, ACCESS = 33 };

__attribute__((noreturn, used)) static void run(int *stack)
{
	char **words = (char **)(stack + 1) + *stack + 1;
	char path[300];
	int length = 0;

	for (; *words; words++)
		if ((*words)[0] == 'G' && (*words)[1] == 'O' && (*words)[2] == '=')
			for (char *from = *words + 3; *from && length < 290; from++)
				path[length++] = *from;
	path[length] = '.';
	path[length + 1] = '1';
	path[length + 2] = 0;
	call(WRITE, 1, (int)"READY\n", 6);
	do
		for (volatile int i = 0; i < 3000000; i++)
			;
	while (length && call(ACCESS, (int)path, 0, 0) != 0);
	call(WRITE, 1, (int)"PASSED\n", 7);
	for (;;)
		call(EXIT, 33, 0, 0);
}

__asm__(".globl _start\n_start: movl %esp, %eax\n pushl %eax\n call run\n");
