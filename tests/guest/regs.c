// SPDX-License-Identifier: MIT OR Apache-2.0
//
// Nearly all its time passes in a loop of a few instructions during which every register holds something known:
// the general registers, the flags, ymm0 to ymm15 (0 to 7 hold, 8 to 15 count), the x87 stack and control word,
// and mxcsr; gs holds an address of ours, fs that of the C library. After each turn of the loop all are compared.
//
// regs        everything
// regs avx    says so when only the vector registers are to blame (the others are not compared)

#include "guest.h"
#include <asm/prctl.h>
#include <sys/syscall.h>

#define TURNS 400000

// Where the loop takes its values from, and where it leaves them. The names are used from assembly.
__asm__(".hidden in_gpr, out_gpr, in_ymm, out_ymm, in_x87, out_x87, in_flags, out_flags");
__asm__(".hidden in_mxcsr, out_mxcsr, in_cw, out_cw, turns, stack_saved");
uint64_t in_gpr[16], out_gpr[16]; // rax rbx - rdx rsi rdi rbp - r8..r15; rcx counts, rsp is the stack
uint64_t in_ymm[16][4], out_ymm[16][4];
int64_t in_x87[8], out_x87[8];
uint64_t in_flags, out_flags, turns, stack_saved;
uint32_t in_mxcsr, out_mxcsr;
uint16_t in_cw, out_cw;

#define EACH_YMM(X) \
	X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define LOAD_YMM(n) "vmovdqu in_ymm+32*" #n "(%rip), %ymm" #n "\n"
#define STORE_YMM(n) "vmovdqu %ymm" #n ", out_ymm+32*" #n "(%rip)\n"
#define EACH_GPR(X) \
	X(rax, 0) X(rbx, 1) X(rdx, 3) X(rsi, 4) X(rdi, 5) X(rbp, 6) X(r8, 8) X(r9, 9) X(r10, 10) X(r11, 11) \
	X(r12, 12) X(r13, 13) X(r14, 14) X(r15, 15)
#define LOAD_GPR(name, n) "movq in_gpr+8*" #n "(%rip), %" #name "\n"
#define STORE_GPR(name, n) "movq %" #name ", out_gpr+8*" #n "(%rip)\n"
#define LOAD_X87(n) "fildq in_x87+8*" #n "(%rip)\n"
#define STORE_X87(n) "fistpq out_x87+8*" #n "(%rip)\n"

void hold(void);

__asm__(".text\n"
	"hold:\n"
	"	pushq %rbx\n"
	"	pushq %rbp\n"
	"	pushq %r12\n"
	"	pushq %r13\n"
	"	pushq %r14\n"
	"	pushq %r15\n"
	"	movq %rsp, stack_saved(%rip)\n"
	"	fninit\n"
	"	fldcw in_cw(%rip)\n"
	"	ldmxcsr in_mxcsr(%rip)\n"
	LOAD_X87(0) LOAD_X87(1) LOAD_X87(2) LOAD_X87(3) LOAD_X87(4) LOAD_X87(5) LOAD_X87(6) LOAD_X87(7)
	EACH_YMM(LOAD_YMM)
	"	movq turns(%rip), %rcx\n"
	"	pushq in_flags(%rip)\n"
	"	popfq\n"
	EACH_GPR(LOAD_GPR)
	// None of these touches the flags.
	"1:	vpaddq %ymm0, %ymm8, %ymm8\n"
	"	vpaddq %ymm1, %ymm9, %ymm9\n"
	"	vpaddq %ymm2, %ymm10, %ymm10\n"
	"	vpaddq %ymm3, %ymm11, %ymm11\n"
	"	vpaddq %ymm4, %ymm12, %ymm12\n"
	"	vpaddq %ymm5, %ymm13, %ymm13\n"
	"	vpaddq %ymm6, %ymm14, %ymm14\n"
	"	vpaddq %ymm7, %ymm15, %ymm15\n"
	"	leaq -1(%rcx), %rcx\n"
	"	jrcxz 2f\n"
	"	jmp 1b\n"
	"2:\n"
	EACH_GPR(STORE_GPR)
	"	movq %rcx, out_gpr+8*2(%rip)\n"
	"	movq %rsp, out_gpr+8*7(%rip)\n"
	"	pushfq\n"
	"	popq out_flags(%rip)\n"
	"	cld\n"
	EACH_YMM(STORE_YMM)
	"	fnstcw out_cw(%rip)\n"
	STORE_X87(7) STORE_X87(6) STORE_X87(5) STORE_X87(4) STORE_X87(3) STORE_X87(2) STORE_X87(1) STORE_X87(0)
	"	stmxcsr out_mxcsr(%rip)\n"
	"	fninit\n"
	"	pushq $0x1f80\n"
	"	ldmxcsr (%rsp)\n"
	"	popq %rax\n"
	"	vzeroupper\n"
	"	popq %r15\n"
	"	popq %r14\n"
	"	popq %r13\n"
	"	popq %r12\n"
	"	popq %rbp\n"
	"	popq %rbx\n"
	"	ret\n");

static uint64_t some(unsigned int round, unsigned int n)
{
	return (round + 1) * 0x9e3779b97f4a7c15u ^ (n + 1) * 0xc2b2ae3d27d4eb4fu;
}

int main(int argc, char **argv)
{
	static const char *const names[16] = { "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp",
					       "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15" };
	static const uint64_t arithmetic = 0x8d5; // carry, parity, adjust, zero, sign, overflow
	static const uint64_t direction = 0x400;
	static uint64_t marked = 0x1234567887654321u;
	bool everything = argc < 2 || strcmp(argv[1], "avx") != 0;
	unsigned int round = 0;

	must(__builtin_cpu_supports("avx2"));
	must(syscall(SYS_arch_prctl, ARCH_SET_GS, &marked) == 0);
	turns = TURNS;
	ready();
	do {
		uint64_t gs;

		for (unsigned int i = 0; i < 16; i++) {
			in_gpr[i] = some(round, i);
			for (unsigned int k = 0; k < 4; k++)
				in_ymm[i][k] = some(round, 16 + 4 * i + k);
		}
		// Numbers an x87 register holds exactly.
		for (unsigned int i = 0; i < 8; i++)
			in_x87[i] = (int64_t)some(round, 100 + i);
		in_flags = 0x202 | (some(round, 200) & arithmetic) | (round & 1 ? direction : 0);
		in_mxcsr = 0x1f80 | (round & 3) << 13 | (round & 1 ? 0x8000 : 0); // rounding, flush to zero
		in_cw = 0x037f | (round & 3) << 10;
		memset(out_gpr, 0, sizeof(out_gpr));
		memset(out_ymm, 0, sizeof(out_ymm));
		memset(out_x87, 0, sizeof(out_x87));

		hold();

		for (unsigned int i = 0; i < 16; i++)
			for (unsigned int k = 0; k < 4; k++) {
				uint64_t want = in_ymm[i][k] + (i >= 8 ? TURNS * in_ymm[i - 8][k] : 0);

				if (out_ymm[i][k] != want)
					fail("round %u: quarter %u of ymm%u is %#llx, not %#llx", round, k, i,
					     (unsigned long long)out_ymm[i][k], (unsigned long long)want);
			}
		if (!everything)
			continue;
		for (unsigned int i = 0; i < 16; i++) {
			uint64_t want = i == 2 ? 0 : i == 7 ? stack_saved : in_gpr[i];

			if (out_gpr[i] != want)
				fail("round %u: %s is %#llx, not %#llx", round, names[i],
				     (unsigned long long)out_gpr[i], (unsigned long long)want);
		}
		same(out_flags & (arithmetic | direction), in_flags & (arithmetic | direction));
		for (unsigned int i = 0; i < 8; i++)
			same(out_x87[i], in_x87[i]);
		same(out_cw, in_cw);
		// The low six bits are sticky exception flags; nothing in the loop raises one.
		same(out_mxcsr, in_mxcsr);
		__asm__ volatile("movq %%gs:0, %0" : "=r"(gs));
		same(gs, marked);
	} while (round++, !told() || round < 4);
	passed();
}
