# SPDX-License-Identifier: MIT OR Apache-2.0

"""The command line of vm/cluster.

Modules are imported where they are needed: `exec` is called often and should start at once.
"""

import os
import sys

USAGE = """\
usage: vm/cluster VERB ...
  up N [--cpus C] [--mem MIB] [--template] [--checkers] [--systemd] [--no-ssi | --no-form] [--bench [--plain]]
                          boot nodes n1..nN, load the module, start ssid on each, form a cluster
  down                    end all nodes; their logs stay in the directory that is printed
  exec NODE [-t] -- CMD.. run a command; -t gives it a terminal
  push NODE SRC DST       copy a file into a node
  console NODE            print the path of the node's console log
  kill NODE               power cut
  start NODE              boot a node again
  freeze NODE             stop a node's processors
  thaw NODE               let them go on
  cut A B [A B ...]       drop all frames between two nodes, silently
  heal A B [A B ...]      no longer drop them
  status                  what runs, and the frames that went from node to node
  check                   fail if a kernel complained or a node is tainted by more than the module
NODE is `2` or `n2`. The environment variable CLUSTER names the cluster (default: unum).
  --template  starts copies of one VM that has booted, which is faster; they differ in less than nodes should
  --checkers  turns the stock kernel's own checkers on
  --systemd   process 1 is systemd, and ssid a service of it; not with --template
  --no-ssi    only boots; neither module nor ssid
  --no-form   leaves it at ssid on each: they are in no cluster
  --bench     takes module and programs of build/bench/, which are not for use
  --plain     makes its links without TLS
"""


class Usage(Exception):
    """The command line is wrong."""


class Failure(Exception):
    """Something went wrong; the text says what, and what to do."""


def main(args):
    """Runs one verb; returns the exit status."""
    if not args or args[0] in ("-h", "--help", "help"):
        sys.stdout.write(USAGE)
        return 0 if args else 2
    verb, args = args[0], args[1:]
    try:
        if verb not in VERBS:
            raise Usage(f"there is no verb {verb}")
        return VERBS[verb](args) or 0
    except Usage as error:
        sys.stderr.write(f"vm/cluster: {error}\n{USAGE}")
        return 2
    except Failure as error:
        sys.stderr.write(f"vm/cluster: {error}\n")
        return 255 if verb == "exec" else 1
    except KeyboardInterrupt:
        return 130


def state():
    """The directory of the cluster that CLUSTER names."""
    name = os.environ.get("CLUSTER") or "unum"
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name.startswith("."):
        raise Failure(f"CLUSTER={name} cannot be a name: letters, digits, and - _ . inside")
    return os.path.join(os.environ.get("XDG_RUNTIME_DIR") or "/run", "unum", name)


def node_number(word):
    """`2` or `n2`, as a number."""
    digits = word.removeprefix("n")
    if not digits.isdecimal():
        raise Usage(f"{word} is no node: say 2 or n2")
    return int(digits)


def node_directory(word):
    """The directory of a node that runs, or ran."""
    path = os.path.join(state(), f"n{node_number(word)}")
    if not os.path.isdir(path):
        raise Failure(f"there is no {word} in {state()}: vm/cluster up starts nodes")
    return path


def take(args, count, what):
    """Exactly `count` arguments."""
    if len(args) != count:
        raise Usage(what)
    return args


def cluster():
    """The cluster, to act on."""
    import cluster as module

    return module.Cluster(state())


def verb_exec(args):
    terminal = False
    if not args:
        raise Usage("exec NODE [-t] -- CMD...")
    node, args = args[0], args[1:]
    if args[:1] == ["-t"]:
        terminal, args = True, args[1:]
    if args[:1] != ["--"] or len(args) < 2:
        raise Usage("exec NODE [-t] -- CMD...")
    import channel

    return channel.run(node_directory(node), args[1:], terminal)


def verb_push(args):
    node, source, destination = take(args, 3, "push NODE SRC DST")
    import channel

    return channel.push(node_directory(node), source, destination)


def verb_console(args):
    (node,) = take(args, 1, "console NODE")
    print(os.path.join(node_directory(node), "console.log"))


def verb_up(args):
    options = {"cpus": 2, "mem": 512, "ssi": True, "form": True}
    options |= dict.fromkeys(("template", "checkers", "systemd", "bench", "plain"), False)
    count = None
    args = list(args)
    while args:
        word = args.pop(0)
        if word in ("--cpus", "--mem"):
            if not args or not args[0].isdecimal():
                raise Usage(f"{word} needs a number")
            options[word[2:]] = int(args.pop(0))
        elif word in ("--template", "--checkers", "--systemd", "--bench", "--plain"):
            options[word[2:]] = True
        elif word == "--no-ssi":
            options["ssi"] = False
        elif word == "--no-form":
            options["form"] = False
        elif word.isdecimal() and count is None and 1 <= int(word) <= 8:
            count = int(word)
        else:
            raise Usage(f"up N, 1 to 8, and its options; not {word}")
    if count is None:
        raise Usage("up N and its options")
    if options["plain"] and not options["bench"]:
        raise Usage("--plain needs --bench: ordinary programs know no plain links")
    if options["systemd"] and options["template"]:
        raise Usage("--systemd boots every node: there is no template of it")
    cluster().up(count, options)


def verb_down(args):
    take(args, 0, "down")
    cluster().down()


def verb_status(args):
    take(args, 0, "status")
    cluster().status()


def verb_check(args):
    take(args, 0, "check")
    import check

    return check.check(cluster())


def on_node(method):
    """A verb that is a method of the cluster and takes a node."""

    def verb(args):
        (node,) = take(args, 1, f"{method} NODE")
        node_directory(node)
        getattr(cluster(), method)(node_number(node))

    return verb


def on_pair(method):
    """A verb of the switch, for one pair of nodes or more."""

    def verb(args):
        if not args or len(args) % 2:
            raise Usage(f"{method} A B [A B ...]")
        for node in args:
            node_directory(node)
        for a, b in zip(args[::2], args[1::2]):
            cluster().switch(f"{method} {node_number(a)} {node_number(b)}")

    return verb


VERBS = {
    "up": verb_up,
    "down": verb_down,
    "exec": verb_exec,
    "push": verb_push,
    "console": verb_console,
    "kill": on_node("kill"),
    "start": on_node("start"),
    "freeze": on_node("freeze"),
    "thaw": on_node("thaw"),
    "cut": on_pair("cut"),
    "heal": on_pair("heal"),
    "status": verb_status,
    "check": verb_check,
}
