// SPDX-License-Identifier: MIT OR Apache-2.0
//
// A program at a terminal: what it knows of the terminal stays, it reads what is typed and writes what is read.
//
// tty show    settings, size, group, name; then echoes lines until "end"
// tty raw     reads single keys without echo, until 'q'
// tty spin    computes; the default of every key's signal ends or stops it

#include "guest.h"
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <termios.h>

struct view {
	struct termios settings;
	struct winsize size;
	pid_t group, session;
	dev_t device;
};

static volatile sig_atomic_t resized;

static void note(int number)
{
	(void)number;
	resized = 1;
}

static struct view look(void)
{
	struct view view;
	struct stat status;

	memset(&view, 0, sizeof(view));
	must(isatty(0) && isatty(1));
	must(tcgetattr(0, &view.settings) == 0);
	must(ioctl(0, TIOCGWINSZ, &view.size) == 0);
	must((view.group = tcgetpgrp(0)) > 0);
	must((view.session = tcgetsid(0)) > 0);
	must(fstat(0, &status) == 0 && S_ISCHR(status.st_mode));
	view.device = status.st_rdev;
	return view;
}

static void read_line(char *line, size_t size)
{
	size_t length = 0;

	for (;;) {
		char byte;
		ssize_t n = read(0, &byte, 1);

		if (n < 0 && errno == EINTR)
			continue;
		must(n == 1);
		if (byte == '\n')
			break;
		if (length + 1 < size)
			line[length++] = byte;
	}
	line[length] = 0;
}

static void show(void)
{
	struct view before = look(), now;
	char line[200];

	signal(SIGWINCH, note);
	ready();
	do {
		read_line(line, sizeof(line));
		now = look();
		must(memcmp(&now.settings, &before.settings, sizeof(now.settings)) == 0);
		same(now.group, before.group);
		same(now.session, before.session);
		same(now.device, before.device);
		say("HEARD %s at %dx%d%s", line, now.size.ws_col, now.size.ws_row, resized ? " resized" : "");
	} while (strcmp(line, "end") != 0);
}

static void raw(void)
{
	struct termios before = look().settings, plain = before;
	char key;

	cfmakeraw(&plain);
	must(tcsetattr(0, TCSAFLUSH, &plain) == 0);
	say("READY\r");
	do {
		struct pollfd polled = { .fd = 0, .events = POLLIN };

		must(poll(&polled, 1, 60000) == 1 && polled.revents == POLLIN);
		must(read(0, &key, 1) == 1);
		say("KEY %d\r", key);
	} while (key != 'q');
	must(tcsetattr(0, TCSAFLUSH, &before) == 0);
}

int main(int argc, char **argv)
{
	const char *what = argc > 1 ? argv[1] : "";

	if (strcmp(what, "show") == 0) {
		show();
	} else if (strcmp(what, "raw") == 0) {
		raw();
	} else if (strcmp(what, "spin") == 0) {
		ready();
		work_until_told();
	} else {
		fail("tty %s: no such test", what);
	}
	passed();
}
