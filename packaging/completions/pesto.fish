# SPDX-License-Identifier: Apache-2.0
# fish completion for pesto(1); goes to share/fish/vendor_completions.d/pesto.fish
complete -c pesto -s A -l add -d 'Add what follows'
complete -c pesto -s D -l delete -d 'Delete what follows'
complete -c pesto -s C -l clear -x -a 'HOST SPLICE' -d 'Delete all rules of a table'
complete -c pesto -s t -l tcp-ports -x -a 'none all auto' -d 'TCP ports of the host'
complete -c pesto -s u -l udp-ports -x -a 'none all auto' -d 'UDP ports of the host'
complete -c pesto -s T -l tcp-ns -x -a 'none all auto' -d 'TCP ports of the namespace'
complete -c pesto -s U -l udp-ns -x -a 'none all auto' -d 'UDP ports of the namespace'
complete -c pesto -s s -l show -d 'Show all rules, before and after'
complete -c pesto -s d -l debug -d 'Tell what is done'
complete -c pesto -s h -l help -d 'Print a summary'
complete -c pesto -l version -d 'Print the version'
