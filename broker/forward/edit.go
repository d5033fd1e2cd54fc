// SPDX-License-Identifier: Apache-2.0

package forward

import (
	"fmt"
	"slices"
	"strings"

	"aldente/broker/cli"
	"aldente/broker/plan"
	"aldente/ipc"
)

// Add adds rules to those in force, all or none, see Change. Each specification is an
// option and its argument, as "-t 8080:80". What is in force already stays.
func (f *Forwarder) Add(specs []string) error {
	return f.edit(specs, func(rules []cli.Rule, r *cli.Rule, option string) ([]cli.Rule, error) {
		if slices.Contains(rules, *r) {
			return rules, nil
		}
		return cli.AddRules(rules, []cli.Rule{*r})
	})
}

// Delete takes rules away, all or none, see Add. Each has to be in force as it is.
// Connections that have come by them stay.
func (f *Forwarder) Delete(specs []string) error {
	return f.edit(specs, func(rules []cli.Rule, r *cli.Rule, option string) ([]cli.Rule, error) {
		if i := slices.Index(rules, *r); i >= 0 {
			return slices.Delete(rules, i, i+1), nil
		}
		outbound := strings.ToUpper(option) == option
		err := fmt.Errorf("there is no rule %s", r.Option(outbound))
		for i := range rules {
			if s := &rules[i]; s.Proto == r.Proto && s.First <= r.Last && r.First <= s.Last {
				return nil, fmt.Errorf("%w; there is %s", err, s.Option(outbound))
			}
		}
		return nil, err
	})
}

// edit has one specification after the other change rules of its direction.
func (f *Forwarder) edit(specs []string, by func(rules []cli.Rule, r *cli.Rule, option string) ([]cli.Rule, error)) error {
	return f.Update(func(now plan.Rules) (plan.Rules, error) {
		for _, spec := range specs {
			option, fresh, err := f.parse(spec)
			if err != nil {
				return now, err
			}
			rules := &now.Inbound
			if strings.ToUpper(option) == option {
				rules = &now.Outbound
			}
			for i := range fresh {
				if *rules, err = by(*rules, &fresh[i], option); err != nil {
					return now, err
				}
			}
		}
		return now, nil
	})
}

// parse reads an option and its argument.
func (f *Forwarder) parse(spec string) (option string, rules []cli.Rule, err error) {
	option, arg, _ := strings.Cut(strings.TrimSpace(spec), " ")
	proto, known := map[string]uint8{
		"-t": ipc.ProtoTCP, "-u": ipc.ProtoUDP, "-T": ipc.ProtoTCP, "-U": ipc.ProtoUDP,
	}[option]
	switch arg = strings.TrimSpace(arg); {
	case !known:
		return "", nil, fmt.Errorf("'%s' is no port rule: give -t, -u, -T or -U, and ports", spec)
	case arg == "none":
		return "", nil, fmt.Errorf("'%s' names no port", spec)
	}
	rules, err = cli.ParseSpec(arg, f.plan.SpecOptions(proto, strings.ToUpper(option) == option))
	return option, rules, err
}
