#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Makes fuzz/corpus anew: runs real clients behind pasta, which records their
# traffic (-p), and keeps a few frames of each kind. As root; in a network
# namespace of its own, which no packet leaves.
#
#	fuzz/capture.sh PASTA
set -eu
cd "$(dirname "$0")/.."
pasta=${1:?usage: $0 PASTA}

if test -z "${ALDENTE_CAPTURE:-}"; then
	work=$(mktemp -d)
	trap 'rm -rf "$work"' EXIT
	chmod 755 "$work"
	CGO_ENABLED=0 go build -o "$work/trim" ./fuzz/trim
	ALDENTE_CAPTURE=$work unshare -n -m -u --fork --kill-child -p --mount-proc sh "$0" "$pasta"
	exit
fi
work=$ALDENTE_CAPTURE

# The host: an interface that the guest is made like, with nobody at its far end,
# and servers on addresses that the guest has not got.
hostname host
ip link set lo up
ip link add eth0 type veth peer name far
ip link set far up
ip link set eth0 up
ip address add 192.0.2.10/24 dev eth0
ip address add 198.51.100.11/32 dev lo
ip address add 2001:db8::10/64 dev eth0 nodad
ip address add 2001:db8:1::11/128 dev lo
ip route add default via 192.0.2.1
ip route add default via 2001:db8::1 dev eth0
echo 0 0 | tee /proc/sys/net/ipv4/ping_group_range >/dev/null
mkdir "$work/www"
head -c 3000 /dev/zero | tr '\0' 'w' >"$work/www/page"
iperf3 -s >/dev/null 2>&1 &
python3 -m http.server --bind :: --directory "$work/www" 8080 >/dev/null 2>&1 &
sleep 1

# record NAME OPTIONS COMMAND: what the command's namespace says to pasta.
record() {
	name=$1 options=$2
	shift 2
	rm -f "$work/raw.pcap"
	# shellcheck disable=SC2086
	timeout 60 "$pasta" --runas 0 -q -t none -u none -T none -U none -p "$work/raw.pcap" $options -- \
		sh -c "$*" >"$work/log" 2>&1 || { echo "$name: status $?"; cat "$work/log"; }
	"$work/trim" "$work/raw.pcap" "fuzz/corpus/$name.pcap"
}

dns='--dhcp-dns --dhcp-search -D 192.0.2.53 -D 2001:db8::53 -S abc.de -S corp.example.org -H guest --fqdn guest.example.org'
up='hostname guest; ip link set dev eth0 up; sleep 0.2;'

record udhcpc "$dns" "$up udhcpc -f -q -n -t 2 -i eth0 -s /bin/true -F guest.example.org -O 119 -O 121 -O 26; udhcpc -f -q -n -t 2 -i eth0 -s /bin/true -B -r 192.0.2.99"
record dhclient4 "$dns" "$up dhclient -4 -1 -v -sf /bin/true -lf $work/l4 -pf $work/p4 eth0; kill \$(cat $work/p4); dhclient -4 -1 -sf /bin/true -lf $work/l4 -pf $work/p4 eth0; dhclient -4 -r -sf /bin/true -lf $work/l4 -pf $work/p4 eth0"
record dhclient6 "$dns" "$up sleep 2; dhclient -6 -1 -v -sf /bin/true -lf $work/l6 -pf $work/p6 eth0; dhclient -6 -r -sf /bin/true -lf $work/l6 -pf $work/p6 eth0; timeout 5 dhclient -6 -S -1 -sf /bin/true -lf $work/l7 -pf $work/p7 eth0; timeout 5 dhclient -6 -P -T -1 -sf /bin/true -lf $work/l8 -pf $work/p8 eth0; true"
record neighbours '' "$up sleep 3; ip address add 192.0.2.10/24 dev eth0; ping -c1 -W1 192.0.2.1; ping -c1 -W1 fe80::1%eth0; ip -6 neighbour flush dev eth0; ip neighbour flush dev eth0; ping -c1 -W1 192.0.2.77; ip link set eth0 down; ip link set eth0 up; sleep 2"
record ping '--config-net --mtu 1500' 'ping -c2 -i0.2 198.51.100.11; ping -c1 -s 3000 198.51.100.11; ping -c1 -R 198.51.100.11; ping -c1 -T tsonly 198.51.100.11; ping -6 -c2 -i0.2 2001:db8:1::11; ping -6 -c1 -s 3000 2001:db8:1::11; ping -c1 -W1 -b 192.0.2.255; ping -6 -c1 -W1 ff02::1%eth0; true'
record traceroute '--config-net' 'traceroute -n -w1 -q1 -m3 198.51.100.11; traceroute -n -w1 -q1 -m3 -I 198.51.100.11; traceroute -n -w1 -q1 -m3 -T 198.51.100.11; traceroute -6 -n -w1 -q1 -m3 2001:db8:1::11; traceroute -n -w1 -q1 -m2 --mtu 198.51.100.11'
record iperf3-tcp '--config-net --mtu 1500' 'iperf3 -c 198.51.100.11 -n 64K -l 1000; iperf3 -6 -c 2001:db8:1::11 -n 64K -l 1000 -R'
record iperf3-udp '--config-net --mtu 1500' 'iperf3 -u -c 198.51.100.11 -n 20K -l 1000; iperf3 -6 -u -c 2001:db8:1::11 -n 20K -l 1000 -R'
record curl '--config-net --mtu 1400' 'curl -s http://198.51.100.11:8080/page; curl -s "http://[2001:db8:1::11]:8080/nothing"; curl -s http://198.51.100.11:9/; curl -s -m1 http://192.0.2.200/; true'
record mdns '--config-net' 'dig +time=1 +tries=1 @224.0.0.251 -p 5353 -b 0.0.0.0 +norecurse printer.local; dig +time=1 +tries=1 @224.0.0.251 -p 5353 +norecurse ptr _services._dns-sd._udp.local; dig +time=1 +tries=1 @198.51.100.11 example.org; dig +tcp +time=1 +tries=1 @198.51.100.11 example.org; true'
ls -l fuzz/corpus
