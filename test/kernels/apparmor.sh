# SPDX-License-Identifier: Apache-2.0
# Read by inside.sh: our profiles, enforced, beside those of Debian that start us.

profiles=/etc/apparmor.d
cp /repo/apparmor/aldente /repo/apparmor/aldente-worker /repo/apparmor/aldente-names $profiles
cp /repo/apparmor/abstractions/* $profiles/abstractions
# A virtual machine's, as libvirt makes it of its template, with the part in which it runs passt.
machine=libvirt-11111111-2222-3333-4444-555555555555
printf '#include <tunables/global>\nprofile %s flags=(attach_disconnected) {\n  #include <abstractions/libvirt-qemu>\n}\n' $machine >$profiles/machine
for p in aldente-worker aldente-names aldente machine slirp4netns crun podman unprivileged_userns; do
	test -e $profiles/$p || continue
	# Complaining, by "job.complain" on the command line, is for finding what is missing.
	apparmor_parser -r $(grep -q job.complain /proc/cmdline && echo -C) $profiles/$p >/tmp/out 2>&1 || tell note "$p: $(tail -n 1 /tmp/out)"
done
tell note "profiles: $(grep -E '^(aldente|libvirt)' /sys/kernel/security/apparmor/profiles | sort | tr '\n' ' ')"
tell note "$(cd /proc/sys/kernel && for f in *apparmor*; do printf '%s=%s ' "$f" "$(cat $f)"; done)"
sysctl -q -w kernel.printk_ratelimit=0
dmesg -C

# denied tells of what the kernel has refused to our programs.
denied() {
	dmesg | grep -E 'apparmor="(DENIED|ALLOWED)"' | sed 's/^.*apparmor=/apparmor=/; s/ pid=[0-9]*//; s/ [fo]suid=[0-9]*//g; s/ ouid=[0-9]*//' | sort | uniq -c | sort -rn | head -n 150 |
		while read -r n line; do tell denied "$line"; done
}

# labels PATTERN: the domains of the processes that pgrep finds.
labels() { for p in $(pgrep -f "$1"); do printf '%s; ' "$(tr -d '\0' </proc/$p/attr/current)"; done; }

checks() {
	# The domains.
	for who in user root; do
		as_$who aldente --config-net --dns 192.0.2.9 --allow tcp:example.test:443 -- sleep 300 >/tmp/out 2>&1 &
		for _ in $(seq 100); do test -n "$(pgrep -f ^aldente-names)" && pgrep -x sleep >/dev/null && break; sleep 0.2; done
		for what in '^aldente --config-net' '^aldente-agent' '^aldente-worker' '^aldente-names' '^sleep 300'; do
			tell label "$who: $what: $(labels "$what")"
		done
		# A worker that is replaced gets its domain under no_new_privs.
		old=$(pgrep -f ^aldente-worker)
		kill -9 $old
		for _ in $(seq 100); do new=$(pgrep -f ^aldente-worker) && test "$new" != "$old" && break; sleep 0.2; done
		tell label "$who: a worker that was replaced: $(labels ^aldente-worker)"
		kill $(pgrep -f '^aldente --config-net')
		for _ in $(seq 100); do pgrep -f ^aldente-worker >/dev/null || break; sleep 0.2; done
	done
	for who in user root; do
		smoke $who 'files: PID, log, packets, flows' 'from outside' sh -c "cd /tmp && mkdir -p files.$who && chmod 777 files.$who && pasta --config-net -P files.$who/pid -l files.$who/log -p files.$who/pcap --flow-log files.$who/flows -- $get"
		smoke $who 'in the background, by process' 'from outside' sh -c 'unshare -r -n sleep 100 & p=$!; sleep 2; pasta --config-net -q $p || exit 1; nsenter -t $p -U -n --preserve-credentials '"$get"'; r=$?; kill $p; exit $r'
		smoke $who 'ports of the guest' 'from inside' sh -c 'mkdir -p /tmp/in.$$; echo from inside >/tmp/in.$$/index.html; pasta --config-net -t 8001 -- busybox httpd -f -p 8001 -h /tmp/in.$$ & p=$!; for i in $(seq 100); do curl -fs --max-time 2 http://192.0.2.2:8001/ && break; sleep 0.2; done; kill $p'
		smoke $who 'ports that come and go' 'from inside' sh -c 'mkdir -p /tmp/in.$$; echo from inside >/tmp/in.$$/index.html; pasta --config-net -t auto -u auto -T auto -U auto -- busybox httpd -f -p 8002 -h /tmp/in.$$ & p=$!; for i in $(seq 100); do curl -fs --max-time 2 http://192.0.2.2:8002/ && break; sleep 0.2; done; kill $p'
		smoke $who 'pesto and aldentectl' '8003' sh -c 'pasta --config-net -c /tmp/c.$$ -- sleep 100 & p=$!; for i in $(seq 100); do test -S /tmp/c.$$ && break; sleep 0.2; done; sleep 1; pesto -A -t 8003 /tmp/c.$$; pesto /tmp/c.$$; aldentectl status >/dev/null || exit 1; kill $p'
		smoke $who 'rules, from a file' 'from outside' sh -c 'echo allow any >/tmp/r.$$; aldente --config-net --rules /tmp/r.$$ -- '"$get"
		smoke $who 'a proxy by name' 'password\|proxy\|refused\|connect' sh -c 'aldente --config-net --via socks5://localhost:1 -- '"$get"'; true'
	done
	smoke root 'a namespace by name' 'from outside' sh -c 'ip netns add blue; pasta --config-net -q --netns blue || exit 1; ip netns exec blue '"$get"'; r=$?; ip netns del blue; exit $r'
	smoke root '--runas' 'from outside' aldente --runas 1000 --config-net -- $get
	smoke root 'a low port' 'from inside' sh -c 'mkdir -p /tmp/in.$$; echo from inside >/tmp/in.$$/index.html; pasta --config-net -t 81 -- busybox httpd -f -p 81 -h /tmp/in.$$ & p=$!; for i in $(seq 100); do curl -fs --max-time 2 http://192.0.2.2:81/ && break; sleep 0.2; done; kill $p'
	# As libvirt starts passt for a machine's user: in a part of the machine's domain.
	mkdir -p /run/user/1000/libvirt/qemu/run/passt
	chown -R 1000:1000 /run/user/1000
	smoke user 'passt, in the domain of a virtual machine of libvirt' 'bound at' sh -c 's=/run/user/1000/libvirt/qemu/run/passt/1
		aa-exec -p '"$machine"'//passt -- /usr/bin/passt --one-off -P $s.pid -s $s.socket 2>&1 >/tmp/passt.$$ || exit 1; ls -l $s.socket | grep -q ^s && echo bound at; kill $(cat $s.pid)'
}
