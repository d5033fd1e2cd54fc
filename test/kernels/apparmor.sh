# SPDX-License-Identifier: Apache-2.0
# Read by inside.sh: our profiles, enforced, beside those of Debian that start us.

profiles=/etc/apparmor.d
cp -r /repo/apparmor/aldente* $profiles
cp -r /repo/apparmor/abstractions/* $profiles/abstractions
# A virtual machine's, as libvirt makes it of its template.
machine=libvirt-11111111-2222-3333-4444-555555555555
printf '#include <tunables/global>\nprofile %s flags=(attach_disconnected) {\n  #include <abstractions/libvirt-qemu>\n}\n' $machine >$profiles/machine
for p in aldente-worker aldente-names aldente aldente-libvirt machine usr.sbin.libvirtd slirp4netns crun podman unprivileged_userns; do
	test -e $profiles/$p || continue
	# Complaining, by "job.complain" on the command line, is for finding what is missing.
	apparmor_parser -r $(grep -q job.complain /proc/cmdline && echo -C) $profiles/$p >/tmp/out 2>&1 || tell note "$p: $(tail -n 1 /tmp/out)"
done
tell note "profiles: $(grep -E '^(aldente|libvirt|crun|slirp4netns)' /sys/kernel/security/apparmor/profiles | sort | tr '\n' ' ')"
tell note "$(cd /proc/sys/kernel && for f in *apparmor*; do printf '%s=%s ' "$f" "$(cat $f)"; done)"
sysctl -q -w kernel.printk_ratelimit=0
dmesg -C

# denied tells of what the kernel has refused to our programs.
denied() {
	dmesg | grep -E 'apparmor="(DENIED|ALLOWED)"' | sed 's/^.*apparmor=/apparmor=/; s/ pid=[0-9]*//; s/ [fo]suid=[0-9]*//g; s/ ouid=[0-9]*//' | sort | uniq -c | sort -rn | head -n 150 |
		while read -r n line; do tell denied "$line"; done
}

# domain WHO NAME PATTERN WANTED: that the processes that pgrep finds are in that domain, which is enforced.
domain() {
	found=$(for p in $(pgrep -f "$3"); do tr -d '\0' </proc/$p/attr/current; done | sort -u | tr '\n' ';')
	case $found in
	"$4 (enforce);" | "$4;") tell smoke "$1: domain of $2, $4: yes" ;;
	*) tell smoke "$1: domain of $2, $4: no: status 0: $found" ;;
	esac
}

# What takes log lines and words of readiness, as systemd's programs do.
mkdir -p /run/systemd/journal /run/user/1000/systemd
for s in /run/systemd/journal/dev-log /run/systemd/notify /run/user/1000/systemd/notify; do
	nc -lkuU $s >>/tmp/heard.$(echo $s | tr / .) 2>/dev/null &
done
for _ in $(seq 50); do test -S /run/user/1000/systemd/notify && break; sleep 0.2; done
chmod 666 /run/systemd/journal/dev-log
mkdir -p /home/user
chown -R 1000:1000 /run/user/1000 /home/user
ln -sf /run/systemd/journal/dev-log /dev/log

checks() {
	# The domains.
	for who in user root; do
		as_$who aldente --config-net --dns 192.0.2.9 --allow tcp:example.test:443 -- sleep 300 >/tmp/out 2>&1 &
		for _ in $(seq 100); do test -n "$(pgrep -f ^aldente-names)" && pgrep -f '^sleep 300' >/dev/null && break; sleep 0.2; done
		sleep 1
		domain $who broker '^aldente --config-net' aldente
		domain $who agent ^aldente-agent aldente
		domain $who worker ^aldente-worker 'aldente//&aldente-worker'
		domain $who names ^aldente-names 'aldente//&aldente-names'
		domain $who command '^sleep 300' unconfined
		# A worker that is replaced gets its domain under no_new_privs.
		old=$(pgrep -f ^aldente-worker)
		kill -9 $old
		for _ in $(seq 100); do new=$(pgrep -f ^aldente-worker) && test "$new" != "$old" && break; sleep 0.2; done
		domain $who 'worker that was replaced' ^aldente-worker 'aldente//&aldente-worker'
		kill $(pgrep -f '^aldente --config-net')
		for _ in $(seq 100); do pgrep -f '^aldente-worker|^sleep 300' >/dev/null || break; sleep 0.2; done
	done
	for who in user root; do
		smoke $who 'files: PID, log, packets, flows' 'from outside' sh -c "cd /tmp && mkdir -p files.$who && chmod 777 files.$who && pasta --config-net -P files.$who/pid -l files.$who/log -p files.$who/pcap --flow-log files.$who/flows -- $get"
		smoke $who 'in the background, by process' 'from outside' sh -c 'unshare -r -n sleep 100 & p=$!; sleep 2; pasta --config-net $p || exit 1; nsenter -t $p -U -n --preserve-credentials '"$get"'; r=$?; kill $p; for i in $(seq 50); do test -s /tmp/heard.*dev-log && exit $r; sleep 0.2; done; echo nothing is logged; exit 1'
		smoke $who 'ports of the guest' 'from inside' sh -c 'mkdir -p /tmp/in.$$; echo from inside >/tmp/in.$$/index.html; pasta --config-net -t 8001 -- busybox httpd -f -p 8001 -h /tmp/in.$$ & p=$!; for i in $(seq 100); do curl -fs --max-time 2 http://192.0.2.2:8001/ && break; sleep 0.2; done; kill $p'
		smoke $who 'ports that come and go' 'from inside' sh -c 'mkdir -p /tmp/in.$$; echo from inside >/tmp/in.$$/index.html; pasta --config-net -t auto -u auto -T auto -U auto -- busybox httpd -f -p 8002 -h /tmp/in.$$ & p=$!; for i in $(seq 100); do curl -fs --max-time 2 http://192.0.2.2:8002/ && break; sleep 0.2; done; kill $p'
		smoke $who 'pesto and aldentectl' '8003' sh -c 'pasta --config-net -c /tmp/c.$$ -- sleep 100 & p=$!; for i in $(seq 100); do test -S /tmp/c.$$ && break; sleep 0.2; done; sleep 1; pesto -A -t 8003 /tmp/c.$$; pesto /tmp/c.$$; aldentectl status >/dev/null || exit 1; kill $p'
		smoke $who 'rules, from a file' 'from outside' sh -c 'echo allow any >/tmp/r.$$; aldente --config-net --rules /tmp/r.$$ -- '"$get"
		smoke $who 'a proxy by name' 'password\|proxy\|refused\|connect' sh -c 'aldente --config-net --via socks5://localhost:1 -- '"$get"'; true'
	done
	smoke root 'a namespace by name' 'from outside' sh -c 'ip netns add blue; pasta --config-net -q --netns blue || exit 1; ip netns exec blue '"$get"'; r=$?; ip netns del blue; exit $r'
	smoke root '--runas' 'from outside' aldente --runas 1000 --config-net -- $get
	smoke root 'a low port' 'from inside' sh -c 'mkdir -p /tmp/in.$$; echo from inside >/tmp/in.$$/index.html; pasta --config-net -t 81 -- busybox httpd -f -p 81 -h /tmp/in.$$ & p=$!; for i in $(seq 100); do curl -fs --max-time 2 http://192.0.2.2:81/ && break; sleep 0.2; done; kill $p'
	smoke user '--sd-notify' 'READY=1' sh -c 'NOTIFY_SOCKET=/run/user/1000/systemd/notify aldente --sd-notify --config-net -- sleep 1; cat /tmp/heard.*1000*notify'
	smoke root '--sd-notify' 'READY=1' sh -c 'NOTIFY_SOCKET=/run/systemd/notify aldente --sd-notify --config-net -- sleep 1; cat /tmp/heard..run.systemd.notify'
	smoke user "a command in the user's folder" 'from outside' sh -c 'mkdir -p /home/user/bin && cp /usr/bin/curl /home/user/bin/mine && X=1 pasta --config-net -- /home/user/bin/mine -fsS --max-time 20 http://192.0.2.9:8000/'
	# As rootless Podman does, from the domain that Debian has for its runtime.
	smoke user 'a namespace by its path, in the domain of crun' 'from outside' aa-exec -p crun -- unshare -r -m sh -c 'touch /run/user/1000/netns; unshare -n mount --bind /proc/self/ns/net /run/user/1000/netns || exit 1
		pasta --config-net --pid /run/user/1000/pasta.pid -t none -u none -T none -U none --no-map-gw --quiet --netns /run/user/1000/netns || exit 1; nsenter --net=/run/user/1000/netns '"$get"'; r=$?; kill $(cat /run/user/1000/pasta.pid); exit $r'
	# As libvirt starts passt: from the domain of a machine, as the machine's user. A frame of the
	# machine's, which asks for the gateway's address, has an answer.
	mkdir -p /run/libvirt/qemu/passt
	chown -R 1000:1000 /run/libvirt/qemu
	passt=/run/libvirt/qemu/passt/1
	for how in '' --vhost-user; do
		as_user aa-exec -i -p $machine -- /usr/bin/passt $how --socket $passt.socket --pid $passt.pid >/tmp/out 2>&1
		domain user "passt${how:+ $how} for libvirt" '^/usr/bin/passt' libvirt-aldente
		kill -9 $(pgrep -f ^aldente-worker)
		for _ in $(seq 100); do pgrep -f ^aldente-worker >/dev/null && break; sleep 0.2; done
		sleep 1
		domain user "worker of passt${how:+ $how} for libvirt, replaced" ^aldente-worker 'aldente-worker//&libvirt-aldente'
		test -n "$how" || smoke user 'passt for libvirt answers a machine' '[4-9][0-9]' sh -c '(printf "\0\0\0\52\377\377\377\377\377\377\122\124\0\1\2\3\10\6\0\1\10\0\6\4\0\1\122\124\0\1\2\3\300\0\2\2\0\0\0\0\0\0\300\0\2\1"; sleep 3) | timeout 10 nc -U '$passt'.socket | wc -c'
		# As libvirtd ends it, from its domain.
		smoke root "passt${how:+ $how} for libvirt is ended" ended sh -c 'aa-exec -p libvirtd -- kill '"$(cat $passt.pid)"' && echo ended'
		for _ in $(seq 100); do pgrep -f ^aldente-worker >/dev/null || break; sleep 0.2; done
	done
	# As packages have it: libvirt's domain alone, and the profile that confines nothing.
	apparmor_parser -R $profiles/aldente
	apparmor_parser -r $profiles/aldente-userns >/tmp/out 2>&1 || tell note "aldente-userns: $(tail -n 1 /tmp/out)"
	switch=/proc/sys/kernel/apparmor_restrict_unprivileged_userns
	test ! -e $switch || echo 1 >$switch
	tell note "apparmor_restrict_unprivileged_userns: $(cat $switch 2>/dev/null || echo none)"
	for who in user root; do
		smoke $who 'with aldente-userns' 'from outside' aldente --strict --config-net -- $get
		smoke $who 'with aldente-userns, under no_new_privs' 'from outside' setpriv --no-new-privs aldente --config-net -- $get
	done
	smoke user 'the command with aldente-userns' '^aldente-userns (unconfined)' aldente --config-net -- cat /proc/self/attr/current
}
