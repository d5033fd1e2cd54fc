#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What run.sh has the machine do once it is up: starts each unit of packaging/systemd, and says
# "all is well" or what is not.
set -eu
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 SYSTEMD_PAGER=
say() { echo "-- $*"; }
fail() {
	echo "FAIL: $*"
	journalctl -b --no-pager -n 60 _TRANSPORT=syslog + _TRANSPORT=stdout + _TRANSPORT=journal
	exit 1
}
until_ok() {
	for _ in $(seq 600); do
		if "$@" >/dev/null 2>&1; then return; fi
		sleep 0.1
	done
	"$@" || fail "$*"
}
as_user() { setpriv --reuid=1000 --regid=1000 --init-groups env -C /home/user HOME=/home/user USER=user XDG_RUNTIME_DIR=/run/user/1000 "$@"; }
user_units() { as_user systemctl --user "$@"; }
outside=http://192.0.2.1:8000/

# ours: a unit's process is ours, of an unprivileged user and without a capability.
ours() {
	manager=$1 unit=$2
	pid=$($manager show -P MainPID "$unit")
	test "$pid" -gt 0 || fail "$unit has no process"
	case $(readlink "/proc/$pid/exe") in /usr/bin/aldente*) ;; *) fail "$unit is $(readlink "/proc/$pid/exe")" ;; esac
	grep -Eq '^Uid:(	[1-9][0-9]*){4}$' "/proc/$pid/status" || fail "$unit runs as $(grep Uid "/proc/$pid/status")"
	grep -q '^CapEff:	0*$' "/proc/$pid/status" || fail "$unit keeps $(grep CapEff "/proc/$pid/status")"
	test "$($manager show -P Type "$unit")" = notify || fail "$unit is not told when it is ready"
}

network() {
	ip netns add outside
	ip link add h0 type veth peer name o0 netns outside
	ip addr add 192.0.2.2/24 dev h0
	ip addr add 2001:db8:1::2/64 dev h0 nodad
	ip link set h0 up
	ip -n outside link set lo up
	ip -n outside addr add 192.0.2.1/24 dev o0
	ip -n outside addr add 192.0.2.3/24 dev o0
	ip -n outside addr add 2001:db8:1::1/64 dev o0 nodad
	ip -n outside link set o0 up
	ip route add default via 192.0.2.1
	ip -6 route add default via 2001:db8:1::1
	mkdir -p /srv/outside /srv/www /etc/aldente
	echo from outside >/srv/outside/index.html
	echo from the sandbox >/srv/www/index.html
	ip netns exec outside busybox httpd -h /srv/outside -p 8000
	until_ok curl -fs $outside
}

# What the package has as examples, put where an administrator would, with a command of ours.
units() {
	cp -r /usr/share/doc/aldente/examples/systemd/system/. /etc/systemd/system
	cp -r /usr/share/doc/aldente/examples/systemd/user/. /etc/systemd/user
	sed -i 's|/usr/libexec/some-server|/usr/bin/busybox httpd -f -h /srv/www -p 8443|' /etc/systemd/system/aldente-server.service
	grep -q 'busybox httpd' /etc/systemd/system/aldente-server.service
	mkdir -p /home/user/.config/aldente
	echo 'OPTIONS="-t 2223:22"' >/home/user/.config/aldente/one.conf
	printf 'OPTIONS="--allow tcp:192.0.2.1:8000 --deny any"\nCOMMAND="curl -fs -o /home/user/got %s"\n' $outside >/home/user/.config/aldente/job.conf
	chown -R user: /home/user
	echo 'OPTIONS="-t 8080:80 --flow-log syslog"' >/etc/aldente/blue.conf
	echo 'OPTIONS="-t 2222:22 --deny host"' >/etc/aldente/one.conf
	systemctl daemon-reload
	until_ok user_units is-active default.target
	user_units daemon-reload
}

netns_unit() {
	say "a namespace"
	unit=aldente-netns@blue
	systemctl start $unit 2>/dev/null && fail "$unit starts without its namespace"
	ip netns add blue
	systemctl reset-failed $unit 2>/dev/null || true
	systemctl start $unit || fail "$unit does not start"
	# Ready is ready: there is nothing to wait for.
	ip netns exec blue curl -fs --max-time 5 -o /dev/null $outside || fail "$unit was not ready when it said so"
	ours systemctl $unit
	busybox netstat -ltn | grep -q ':8080 ' || fail "$unit has not opened its port"
	systemctl reload $unit && systemctl is-active -q $unit || fail "$unit does not live through a reload"
	kill -9 "$(systemctl show -P MainPID $unit)"
	until_ok sh -c "test \$(systemctl show -P NRestarts $unit) = 1"
	until_ok ip netns exec blue curl -fs --max-time 5 $outside
	until_ok sh -c "journalctl -q -b -u $unit ALDENTE_PROTOCOL=tcp -o json --output-fields=ALDENTE_REMOTE | grep -q '192.0.2.1:8000'"
	systemctl stop $unit
	pgrep -x 'aldente|aldente-worker' && fail "$unit leaves processes behind"
	ip netns del blue
}

server_units() {
	say "a port that systemd opens"
	systemctl start aldente-server.socket aldente-server.service || fail "aldente-server does not start"
	ours systemctl aldente-server.service
	for at in 127.0.0.1 192.0.2.2 '[::1]' '[2001:db8:1::2]'; do
		until_ok curl -fsg --max-time 5 "http://$at:443/"
		test "$(curl -fsg --max-time 5 "http://$at:443/")" = 'from the sandbox' || fail "no answer at $at"
	done
	# Stopped, its port is still there, and the next connection starts it.
	systemctl stop aldente-server.service 2>/dev/null
	busybox netstat -ltn | grep -q ':443 ' || fail "the port is closed with the service"
	until_ok curl -fs --max-time 5 http://127.0.0.1:443/
	systemctl is-active -q aldente-server.service || fail "a connection does not start the service"
	systemctl stop aldente-server.service aldente-server.socket 2>/dev/null
	busybox netstat -ltn | grep -q ':443 ' && fail "the port stays behind"
	true
}

# vm_units has a manager, the socket's path, and the port that is forwarded.
vm_units() {
	say "a virtual machine: $1"
	$1 start aldente-vm@one.socket || fail "aldente-vm@one.socket does not start"
	test "$(stat -c %a "$2")" = 600 || fail "$2 has the mode $(stat -c %a "$2")"
	$1 is-active -q aldente-vm@one.service && fail "aldente-vm@one.service has started by itself"
	for _ in 1 2; do
		python3 /debs/guest.py "$2" 192.0.2.2 192.0.2.1 192.0.2.3 8000 || fail "the machine at $2 has no network"
		$1 is-active -q aldente-vm@one.service || fail "aldente-vm@one.service is not active"
	done
	ours "$1" aldente-vm@one.service
	busybox netstat -ltn | grep -q ":$3 " || fail "aldente-vm@one has not opened its port"
	# It starts anew with the socket that is still there.
	$1 restart aldente-vm@one.service || fail "aldente-vm@one.service does not start again"
	python3 /debs/guest.py "$2" 192.0.2.2 192.0.2.1 192.0.2.3 8000 || fail "the machine at $2 has no network after a restart"
	$1 stop aldente-vm@one.service aldente-vm@one.socket 2>/dev/null
	test ! -e "$2" || fail "$2 stays behind"
}

user_check() {
	say "a user's process, and a command"
	as_user unshare -Urn sleep 1000 &
	until_ok pgrep -x sleep
	guest=$(pgrep -x sleep)
	unit=aldente-netns@$guest
	user_units start "$unit" || fail "the user's $unit does not start"
	nsenter -t "$guest" -U -n --preserve-credentials curl -fs --max-time 5 -o /dev/null $outside || fail "the user's $unit was not ready when it said so"
	ours user_units "$unit"
	kill "$guest"
	until_ok sh -c '! pgrep -x aldente-worker'
	user_units is-failed -q "$unit" && fail "the end of its process is a failure of $unit"
	rm -f /home/user/got
	user_units start aldente-command@job || fail "the user's aldente-command@job does not start"
	until_ok grep -q 'from outside' /home/user/got
}

say "$(systemctl --version | head -n 1), Linux $(uname -r)"
network
units
netns_unit
server_units
vm_units systemctl /run/aldente/one.socket 2222
user_check
vm_units user_units /run/user/1000/aldente/one.socket 2223
echo "all is well"
