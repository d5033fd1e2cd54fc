#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What run.sh has a virtual machine do, as its first process after init: the conditions that the kernel's command
# line asks for, then what there is, the programs one by one, and the tests of ./select. Each line of the
# results has a word for what it is before a tab.
export ALDENTE_SLOW=10 HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8
exec </dev/null
mount -t devpts devpts /dev/pts 2>/dev/null || { mkdir -p /dev/pts; mount -t devpts devpts /dev/pts; }
mkdir -p /dev/shm
for d in /tmp /run /dev/shm; do mount -t tmpfs -o mode=1777 tmpfs $d; done
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t securityfs securityfs /sys/kernel/security
mount --make-rshared /
out=$(ls /dev/vport*p* | head -n 1)
exec 3>"$out"
tell() { printf '%s\t%s\n' "$1" "$2" >&3; }
end() {
	# The self-test has one process killed by its filter, for ptrace.
	dmesg | grep -E 'Oops|BUG:|WARNING:|general protection|audit: type=1326' | grep -v "syscall=$ptrace " | head -n 20 | while read -r line; do tell kernel-log "$line"; done
	test -z "$module" || denied
	tell end "$(cut -d ' ' -f 1 /proc/uptime) s"
	exec 3>&-
	sync
	echo o >/proc/sysrq-trigger
	sleep 60
}
trap end EXIT

module= then=
ptrace=101
test "$(uname -m)" = x86_64 || ptrace=117
for word in $(cat /proc/cmdline); do
	case $word in
	job.notests) : >/repo/select ;;
	job.module=*) module=${word#job.module=} ;;
	job.then=*) then=$(echo "${word#job.then=}" | tr , ' ') ;;
	esac
done
for m in tun veth dummy bridge vrf sch_netem; do modprobe -q $m 2>/dev/null || true; done
chmod 666 /dev/net/tun

# A host, and something outside of it.
ip link set lo up
six=$(test -e /proc/net/if_inet6 && echo yes || true)
mkdir -p /run/netns /run/user/1000 /tmp/outside
chown 1000:1000 /run/user/1000
sysctl -q -w net.ipv4.ping_group_range='0 2147483647'
ip netns add outside
if ip link add h0 type veth peer name o0 netns outside; then
	ip addr add 192.0.2.2/24 dev h0
	ip link set h0 up
	ip -n outside link set lo up
	ip -n outside addr add 192.0.2.1/24 dev o0; ip -n outside addr add 192.0.2.9/24 dev o0
	ip -n outside link set o0 up
	ip route add default via 192.0.2.1
	if test -n "$six"; then
		ip addr add 2001:db8:1::2/64 dev h0 nodad
		ip -n outside addr add 2001:db8:1::1/64 dev o0 nodad; ip -n outside addr add 2001:db8:1::9/64 dev o0 nodad
		ip -6 route add default via 2001:db8:1::1
	fi
else
	tell note "no veth: no network outside"
fi
echo from outside >/tmp/outside/index.html
ip netns exec outside /usr/bin/busybox httpd -h /tmp/outside -p 8000

for _ in $(seq 60); do curl -fs --max-time 2 http://192.0.2.9:8000/ >/dev/null && break; sleep 0.5; done

# As packages have it.
install -d /usr/libexec/aldente
install -m 711 /repo/bin/aldente /usr/bin/aldente
install -m 755 /repo/bin/aldentectl /usr/bin/aldentectl
install -m 755 /repo/bin/aldente-worker /repo/bin/aldente-names /usr/libexec/aldente
for n in pasta passt slirp4netns; do ln -sf aldente /usr/bin/$n; done
ln -sf aldentectl /usr/bin/pesto
as_user() { setpriv --reuid=1000 --regid=1000 --init-groups env HOME=/home/user USER=user XDG_RUNTIME_DIR=/run/user/1000 "$@"; }
as_root() { "$@"; }

test -z "$module" || . "/repo/$module.sh"

# smoke WHO NAME WANTED COMMAND...: one line: what it is, and yes or what it said.
smoke() {
	who=$1 name=$2 want=$3
	shift 3
	as_$who timeout 60 "$@" >/tmp/out 2>&1
	status=$?
	if test $status = 0 && grep -q "$want" /tmp/out; then tell "smoke" "$who: $name: yes"; else tell "smoke" "$who: $name: no: status $status: $({ grep -v '^ *%\|: partly in force\|: missing\|^ *$' /tmp/out || cat /tmp/out; } | tail -n 1 | tr '\t' ' ')"; fi
}
get='curl -fsS --max-time 20 http://192.0.2.9:8000/'

# look has what the kernel says, and what each program does.
look() {
	tell release "$(uname -r)"
	tell machine "$(uname -m)"
	tell modules "$(cat /sys/kernel/security/lsm 2>/dev/null)"
	for who in user root; do
		as_$who timeout 120 aldente --self-test >/tmp/out 2>&1
		status=$?
		while IFS= read -r line; do tell "self-test-$who" "$line"; done </tmp/out
		tell "self-test-$who-status" $status
	done
	for who in user root; do
		smoke $who 'pasta, IPv4' 'from outside' pasta --config-net -- $get
		test -z "$six" || smoke $who 'pasta, IPv6' 'from outside' pasta --config-net -- curl -fsS --max-time 20 'http://[2001:db8:1::9]:8000/'
		smoke $who 'aldente, strict' 'from outside' aldente --strict --config-net -- $get
		smoke $who 'aldente, refused by rule' 'curl: (7)' sh -c "! aldente --config-net --dns 192.0.2.9 --allow tcp:example.test:443 --deny any -- $get"
		smoke $who 'aldente, --no-hide-sockets' 'from outside' aldente --no-hide-sockets --config-net -- $get
		smoke $who 'slirp4netns' 'from outside' sh -c 'unshare -r -n sleep 100 & p=$!; sleep 2; slirp4netns -c -r 3 $p tap0 3>/tmp/ready.$$ & s=$!
			for i in $(seq 100); do test -s /tmp/ready.$$ && break; kill -0 $s 2>/dev/null || { kill $p 2>/dev/null; exit 1; }; sleep 0.1; done; nsenter -t $p -U -n --preserve-credentials '"$get"'; r=$?; kill $p $s; exit $r'
		smoke $who 'aldentectl' 'command sleep' sh -c 'aldente --config-net -- sleep 100 & p=$!; for i in $(seq 50); do aldentectl list 2>/dev/null | grep "command sleep" && break; kill -0 $p 2>/dev/null || exit 1; sleep 0.2; done; kill $p'
		smoke $who 'passt, a socket for virtual machines' 'bound at' sh -c 'passt -f -s /tmp/s.$$ >/tmp/passt.$$ 2>&1 & p=$!; for i in $(seq 100); do grep -q "bound at" /tmp/passt.$$ && break; kill -0 $p 2>/dev/null || break; sleep 0.1; done; kill $p 2>/dev/null; cat /tmp/passt.$$'
		rm -rf /tmp/ready.* /tmp/passt.*
	done
}

look
test -z "$module" || checks

# The tests: each line of select is a folder and an expression.
while read -r folder tests; do
	test -x "/repo/$folder.test" || continue
	cd "/repo/$folder" || continue
	"/repo/$folder.test" -test.v -test.count 1 -test.timeout 25m -test.run "$tests" >/tmp/tests 2>&1
	status=$?
	grep -E '^ *--- (PASS|FAIL|SKIP)' /tmp/tests | sed 's/ *--- //' | while read -r what name _; do tell "test" "$what ${name}"; done
	if test $status != 0; then tail -c 60000 /tmp/tests | while IFS= read -r line; do tell "log" "$line"; done; fi
	tell "tests" "$folder status $status"
done </repo/select

# The same once more without one thing or another: each is a run of its own.
for condition in $then; do
	tell condition "$condition"
	case $condition in
	nouserns) sysctl -q -w user.max_user_namespaces=0 ;;
	norootless) sysctl -q -w kernel.unprivileged_userns_clone=0 ;;
	notun)
		rmmod tun
		# And nobody loads it again.
		mkdir -p /run/none
		mount --bind /run/none "/usr/lib/modules/$(uname -r)/kernel/drivers/net"
		rm -f /dev/net/tun
		;;
	esac
	look
	case $condition in
	nouserns) sysctl -q -w user.max_user_namespaces=10000 ;;
	norootless) sysctl -q -w kernel.unprivileged_userns_clone=1 ;;
	esac
done
