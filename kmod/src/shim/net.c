// SPDX-License-Identifier: GPL-2.0-only
/* Wrappers around sockets: fields and inlines that have no function of their own. */
#include <linux/cgroup.h>
#include <linux/memcontrol.h>
#include <linux/module.h>
#include <linux/net.h>
#include <linux/tcp.h>
#include <net/inet_sock.h>
#include <net/sock.h>
#include <net/tcp.h>
#include <net/tcp_states.h>
#include "link.h"

/* Links of two peers meet in one task: to lockdep they are a class apart from users' sockets. */
static struct lock_class_key ssi_sock_key;

int ssi_sock_is_tcp(struct socket *sock)
{
	struct sock *sk = sock->sk;

	return sk && sock->type == SOCK_STREAM && sk->sk_protocol == IPPROTO_TCP &&
	       (sk->sk_family == AF_INET || sk->sk_family == AF_INET6);
}

int ssi_sock_is_established(struct socket *sock)
{
	return READ_ONCE(sock->sk->sk_state) == TCP_ESTABLISHED;
}

/*
 * The socket becomes the module's: its memory does not wait for I/O and does not come from
 * current->task_frag, a send waits at most send_jiffies at a time, and at most notsent bytes
 * stand in it unsent.
 */
void ssi_sock_adopt(struct socket *sock, unsigned int send_ms, unsigned int notsent)
{
	struct sock *sk = sock->sk;

	tcp_sock_set_nodelay(sk);
	lock_sock(sk);
	sk->sk_allocation = GFP_NOIO | __GFP_NOWARN;
	sk->sk_use_task_frag = false;
	WRITE_ONCE(sk->sk_sndtimeo, msecs_to_jiffies(send_ms));
	WRITE_ONCE(sk->sk_rcvtimeo, MAX_SCHEDULE_TIMEOUT);
	WRITE_ONCE(tcp_sk(sk)->notsent_lowat, notsent);
	lockdep_set_class(&sk->sk_lock, &ssi_sock_key);
	release_sock(sk);
}

/*
 * Moves a socket that holds no memory out of its memory cgroup, as mem_cgroup_sk_alloc() leaves
 * those of the root cgroup: a limit on the daemon that opened it must not stall a link. 0 if it
 * holds memory, so that its charge would be lost.
 */
int ssi_sock_leave_cgroup(struct socket *sock)
{
	int done = 1;
#ifdef CONFIG_MEMCG
	struct sock *sk = sock->sk;
	struct mem_cgroup *memcg = NULL;

	lock_sock(sk);
	if (sk->sk_memcg) {
		if (sk->sk_forward_alloc >= PAGE_SIZE)
			__sk_mem_reclaim(sk, sk->sk_forward_alloc);
		if (sk->sk_forward_alloc || sk->sk_reserved_mem || sk->sk_wmem_queued ||
		    atomic_read(&sk->sk_rmem_alloc) || sk->sk_backlog.tail) {
			done = 0;
		} else {
			memcg = sk->sk_memcg;
			sk->sk_memcg = NULL;
		}
	}
	release_sock(sk);
	if (memcg)
		css_put(&memcg->css);
#endif
	return done;
}
