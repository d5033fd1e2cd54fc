// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strings"
)

// completion prints what a shell completes the program's arguments by.
func completion(c *call) error {
	script := map[string]func() string{"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion}[c.args[0]]
	if script == nil {
		return c.wrong("%s is none of %s", c.args[0], strings.Join(c.values, ", "))
	}
	fmt.Fprint(c.raw, script())
	return nil
}

// words are what may follow a command: values of its operand, and flags.
func (c *command) words() []string {
	if c.run == nil {
		var all []string
		for i := range options {
			if options[i].short != 0 {
				all = append(all, "-"+string(options[i].short))
			}
			all = append(all, "--"+options[i].long)
		}
		return all
	}
	all := slices.Clone(c.values)
	for _, f := range c.all() {
		if f.short != 0 {
			all = append(all, "-"+string(f.short))
		}
		all = append(all, "--"+f.long)
	}
	return all
}

// after are flags whose argument has values, or is a path; each once.
func after() (values map[string][]string, paths []string) {
	values = map[string][]string{}
	for i := range commands {
		for _, f := range commands[i].all() {
			switch name := "--" + f.long; {
			case f.file && !slices.Contains(paths, name):
				if f.short != 0 {
					paths = append(paths, "-"+string(f.short))
				}
				paths = append(paths, name)
			case f.values != nil:
				values[name] = f.values
			}
		}
	}
	return values, paths
}

// pids has a shell list the instances that there are.
const pids = "aldentectl list 2>/dev/null | tail -n +2 | cut -d ' ' -f 1"

func bashCompletion() string {
	var b strings.Builder
	b.WriteString(`# bash completion for aldentectl(1), made by "aldentectl completion bash"
_aldentectl() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} words
	case $prev in
	--pid)
		mapfile -t COMPREPLY < <(compgen -W "$(` + pids + `)" -- "$cur")
		return
		;;
`)
	values, paths := after()
	for _, name := range sorted(values) {
		fmt.Fprintf(&b, "\t%s)\n\t\tmapfile -t COMPREPLY < <(compgen -W '%s' -- \"$cur\")\n\t\treturn\n\t\t;;\n", name, strings.Join(values[name], " "))
	}
	fmt.Fprintf(&b, "\t%s)\n\t\tcompopt -o filenames\n\t\tmapfile -t COMPREPLY < <(compgen -f -- \"$cur\")\n\t\treturn\n\t\t;;\n\tesac\n", strings.Join(paths, " | "))
	b.WriteString("\tif ((COMP_CWORD == 1)); then\n")
	fmt.Fprintf(&b, "\t\twords='%s'\n\telse\n\t\tcase ${COMP_WORDS[1]} in\n", strings.Join(first(), " "))
	for i := range commands {
		fmt.Fprintf(&b, "\t\t%s) words='%s' ;;\n", commands[i].name, strings.Join(commands[i].words(), " "))
	}
	b.WriteString("\t\t*) words= ;;\n\t\tesac\n\tfi\n\tmapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$cur\")\n}\ncomplete -o bashdefault -o default -F _aldentectl aldentectl\n")
	return b.String()
}

// first are what may come first.
func first() []string {
	var all []string
	for i := range commands {
		all = append(all, commands[i].name)
	}
	return append(all, "--help", "--version")
}

func sorted(m map[string][]string) []string {
	var all []string
	for name := range m {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

// brief is the help of a row in one line, in single quotes.
func brief(help string) string {
	return strings.NewReplacer("\n", " ", "'", "", "\\", "", "[", "(", "]", ")", ":", ",").Replace(help)
}

func zshCompletion() string {
	var b strings.Builder
	b.WriteString("#compdef aldentectl\n# zsh completion for aldentectl(1), made by \"aldentectl completion zsh\"\n_aldentectl() {\n\tlocal -a commands\n\tcommands=(\n")
	for i := range commands {
		fmt.Fprintf(&b, "\t\t'%s:%s'\n", commands[i].name, brief(commands[i].help))
	}
	b.WriteString("\t)\n\tif ((CURRENT == 2)); then\n\t\t_describe command commands\n\t\t_arguments '--help[print help]' '--version[print the version]'\n\t\treturn\n\tfi\n\tcase $words[2] in\n")
	for i := range commands {
		c := &commands[i]
		fmt.Fprintf(&b, "\t%s)\n\t\tshift words\n\t\t((CURRENT--))\n", c.name)
		if c.run == nil {
			fmt.Fprintf(&b, "\t\t_pesto\n\t\t;;\n")
			continue
		}
		b.WriteString("\t\t_arguments")
		for _, f := range c.all() {
			spec := fmt.Sprintf("--%s[%s]", f.long, brief(f.help))
			if f.short != 0 {
				fmt.Fprintf(&b, " \\\n\t\t\t'-%c[%s]", f.short, brief(f.help))
				if f.arg != "" {
					fmt.Fprintf(&b, ":%s:_files", f.arg)
				}
				b.WriteString("'")
			}
			switch {
			case f.file:
				spec += ":" + f.arg + ":_files"
			case f.long == flagPID.long:
				spec += ":PID:($(" + strings.ReplaceAll(pids, "'", `'\''`) + "))"
			case f.arg != "":
				spec += ":" + f.arg + ":(" + strings.Join(f.values, " ") + ")"
			}
			fmt.Fprintf(&b, " \\\n\t\t\t'%s'", spec)
		}
		if c.values != nil {
			fmt.Fprintf(&b, " \\\n\t\t\t'1:%s:(%s)'", c.args, strings.Join(c.values, " "))
		}
		b.WriteString("\n\t\t;;\n")
	}
	b.WriteString("\tesac\n}\n_aldentectl \"$@\"\n")
	return b.String()
}

func fishCompletion() string {
	var b strings.Builder
	b.WriteString("# fish completion for aldentectl(1), made by \"aldentectl completion fish\"\ncomplete -c aldentectl -f\n")
	b.WriteString("complete -c aldentectl -n __fish_use_subcommand -l help -d 'print help'\ncomplete -c aldentectl -n __fish_use_subcommand -l version -d 'print the version'\n")
	for i := range commands {
		c := &commands[i]
		fmt.Fprintf(&b, "complete -c aldentectl -n __fish_use_subcommand -a %s -d '%s'\n", c.name, brief(c.help))
		in := fmt.Sprintf("complete -c aldentectl -n '__fish_seen_subcommand_from %s'", c.name)
		if c.values != nil {
			fmt.Fprintf(&b, "%s -a '%s'\n", in, strings.Join(c.values, " "))
		}
		for _, f := range c.all() {
			fmt.Fprintf(&b, "%s -l %s", in, f.long)
			if f.short != 0 {
				fmt.Fprintf(&b, " -s %c", f.short)
			}
			switch {
			case f.file:
				b.WriteString(" -r -F")
			case f.long == flagPID.long:
				fmt.Fprintf(&b, " -x -a \"(%s)\"", pids)
			case f.arg != "":
				fmt.Fprintf(&b, " -x -a '%s'", strings.Join(f.values, " "))
			}
			fmt.Fprintf(&b, " -d '%s'\n", brief(f.help))
		}
		if c.run == nil {
			for j := range options {
				o := &options[j]
				fmt.Fprintf(&b, "%s -l %s -d '%s'\n", in, o.long, brief(o.help))
			}
			fmt.Fprintf(&b, "%s -F\n", in)
		}
	}
	return b.String()
}
