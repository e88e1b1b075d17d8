// SPDX-License-Identifier: MIT OR Apache-2.0

//! The stub: what a guest is before it is itself.
//!
//! ssid runs it under the guest's number with the module's device as file 0 and the migration's
//! token in its first argument. It gives itself to the module and never comes back; if the module
//! does not want it, it ends with status 1. It is linked where no program lives and needs nothing:
//! no libc, no heap, no relocation.

#![no_std]
#![no_main]

use core::arch::{asm, naked_asm};

const SYS_IOCTL: usize = 16;
const SYS_EXIT_GROUP: usize = 231;
const BECOME: usize = decimal(env!("SSI_BECOME").as_ptr());

/// The number at `text`, which ends at the first byte that is no digit.
const fn decimal(mut text: *const u8) -> usize {
    let mut n: usize = 0;
    loop {
        // SAFETY: an argument ends with a zero, the constant with a dot: reading stops there.
        let c = unsafe { *text };
        if !c.is_ascii_digit() {
            return n;
        }
        n = n.wrapping_mul(10).wrapping_add((c - b'0') as usize);
        // SAFETY: the byte at `text` was a digit, so another follows it.
        text = unsafe { text.add(1) };
    }
}

fn syscall(number: usize, a: usize, b: usize, c: usize) -> usize {
    let result;
    // SAFETY: ioctl on our own file and exit_group touch no memory of this program.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c,
             lateout("rcx") _, lateout("r11") _);
    }
    result
}

extern "C" fn main(stack: *const *const u8) -> ! {
    // SAFETY: the kernel puts the argument count, then the arguments, at the first stack pointer.
    let (count, token) = unsafe { (*stack.cast::<usize>(), *stack.add(2)) };
    if count == 2 {
        syscall(SYS_IOCTL, 0, BECOME, decimal(token));
    }
    loop {
        syscall(SYS_EXIT_GROUP, 1, 0, 0);
    }
}

/// Where the kernel starts the program.
#[unsafe(naked)]
#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    naked_asm!("mov rdi, rsp", "and rsp, -16", "call {main}", "ud2", main = sym main)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        syscall(SYS_EXIT_GROUP, 1, 0, 0);
    }
}
