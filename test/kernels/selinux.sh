# SPDX-License-Identifier: Apache-2.0
# Read by inside.sh: our SELinux module in Debian's reference policy, enforcing. Users are unconfined_t, as
# Debian's are, and have what they start in our domain.

contexts=/etc/selinux/default/contexts/files/file_contexts
load_policy -i || tell note "the policy is not loaded: $?"
# Labels of what is in memory count from then on.
setfiles -F $contexts /usr/bin/aldente /usr/bin/aldentectl /usr/libexec/aldente /tmp /run /dev /home 2>/tmp/out || tell note "labels: $(tail -n 1 /tmp/out)"
setsebool aldente_users on || tell note "no boolean aldente_users"
tell note "$(getenforce), policy $(cat /sys/fs/selinux/policyvers), $(ls -Z /usr/bin/aldente)"
dmesg -C
user_domain=unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023
as_user() { runcon $user_domain setpriv --reuid=1000 --regid=1000 --init-groups env HOME=/home/user USER=user XDG_RUNTIME_DIR=/run/user/1000 "$@"; }
as_root() { runcon $user_domain "$@"; }

# denied tells of what the kernel has refused to our domains.
denied() {
	dmesg | grep 'avc:  denied' | grep 'aldente' | sed 's/^.*avc: /avc:/; s/ pid=[0-9]*//; s/ ino=[0-9]*//; s/ dev="[^"]*"//' | sort | uniq -c | sort -rn | head -n 100 |
		while read -r n line; do tell denied "$line"; done
}

checks() {
	for who in user root; do
		as_$who aldente --config-net --dns 192.0.2.9 --allow tcp:example.test:443 -- sleep 300 >/tmp/out 2>&1 &
		for _ in $(seq 100); do test -n "$(pgrep -f ^aldente-names)" && pgrep -x sleep >/dev/null && break; sleep 0.2; done
		for what in '^aldente --config-net' '^aldente-agent' '^aldente-worker' '^aldente-names' '^sleep 300'; do
			tell label "$who: $what: $(for p in $(pgrep -f "$what"); do printf '%s; ' "$(tr -d '\0' </proc/$p/attr/current)"; done)"
		done
		kill $(pgrep -f '^aldente --config-net')
		for _ in $(seq 100); do pgrep -f ^aldente-worker >/dev/null || break; sleep 0.2; done
	done
}
