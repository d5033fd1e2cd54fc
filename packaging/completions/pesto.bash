# SPDX-License-Identifier: Apache-2.0
# bash completion for pesto(1); goes to share/bash-completion/completions/pesto
_pesto() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
	case $prev in
	-C | --clear)
		mapfile -t COMPREPLY < <(compgen -W 'HOST SPLICE' -- "$cur")
		return
		;;
	-t | --tcp-ports | -u | --udp-ports | -T | --tcp-ns | -U | --udp-ns)
		mapfile -t COMPREPLY < <(compgen -W 'none all auto' -- "$cur")
		return
		;;
	esac
	case $cur in
	-*)
		mapfile -t COMPREPLY < <(compgen -W '-A --add -D --delete -C --clear -t --tcp-ports -u --udp-ports
			-T --tcp-ns -U --udp-ns -s --show -d --debug -h --help --version' -- "$cur")
		;;
	*)
		compopt -o filenames
		mapfile -t COMPREPLY < <(compgen -f -- "$cur")
		;;
	esac
}
complete -F _pesto pesto
