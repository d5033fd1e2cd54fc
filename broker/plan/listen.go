// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"fmt"
	"net/netip"

	"aldente/broker/cli"
	"aldente/broker/sockets"
	"aldente/ipc"
)

func inbound(cfg *cli.Config) []*cli.Rule { return inForce(cfg, &cfg.TCPPorts, &cfg.UDPPorts) }

func outbound(cfg *cli.Config) []*cli.Rule { return inForce(cfg, &cfg.TCPNS, &cfg.UDPNS) }

// inForce returns the rules whose protocol is not turned off.
func inForce(cfg *cli.Config, forwards ...*cli.Forward) (all []*cli.Rule) {
	for _, f := range forwards {
		for i := range f.Rules {
			r := &f.Rules[i]
			if r.Proto == ipc.ProtoTCP && !cfg.NoTCP || r.Proto == ipc.ProtoUDP && !cfg.NoUDP {
				all = append(all, r)
			}
		}
	}
	return all
}

// Rules is what is forwarded, in both directions.
type Rules struct {
	Inbound  []cli.Rule // -t, -u: from the host to the guest
	Outbound []cli.Rule // -T, -U: from the namespace's loopback to the host's
}

// Live tells whether rules may change while the instance runs (-c, --control, and
// slirp4netns's -a).
func (p *Plan) Live() bool { return p.LiveRules() || p.cfg.APISocket != "" }

// LiveRules tells whether these changes may be of any kind: with "auto", and from the
// namespace to the host.
func (p *Plan) LiveRules() bool { return p.cfg.ConfPath != "" || p.cfg.Controllable() }

// Admit looks at rules that are to take the place of those in force, as the options
// would have allowed them.
func (p *Plan) Admit(r Rules) (Rules, error) {
	for _, rules := range [...][]cli.Rule{r.Inbound, r.Outbound} {
		for i := range rules {
			if err := p.possible(&rules[i]); err != nil {
				return r, err
			}
		}
	}
	if p.cfg.Machine() && len(r.Outbound) > 0 {
		return r, fmt.Errorf("there is no namespace to forward from: %v", &r.Outbound[0])
	}
	var err error
	if r.Inbound, err = cli.Admit(r.Inbound, p.SpecOptions(0, false)); err != nil {
		return r, err
	}
	r.Outbound, err = cli.Admit(r.Outbound, p.SpecOptions(0, true))
	return r, err
}

// SpecOptions is what the meaning of a port specification depends on here.
func (p *Plan) SpecOptions(proto uint8, outbound bool) cli.SpecOptions {
	return cli.SpecOptions{
		Proto: proto, Outbound: outbound, Auto: !p.cfg.Machine() && p.cfg.Personality != cli.Slirp,
		IPv4Only: p.cfg.IPv4Only, IPv6Only: p.cfg.IPv6Only, Ephemeral: cli.PortRange(p.Factory.ClientPorts),
	}
}

// possible tells why a rule cannot be met, whatever it says otherwise.
func (p *Plan) possible(r *cli.Rule) error {
	switch {
	case r.Proto == ipc.ProtoTCP && p.cfg.NoTCP, r.Proto == ipc.ProtoUDP && p.cfg.NoUDP:
		return fmt.Errorf("can't forward ports with the protocol disabled: %v", r)
	case r.Addr.Is6() && !p.net.v6.enabled:
		return fmt.Errorf("IPv6 forward, but IPv6 not enabled: %v", r)
	case r.Addr.Is4() && !p.net.v4.enabled:
		return fmt.Errorf("IPv4 forward, but IPv4 not enabled: %v", r)
	}
	return nil
}

// Capabilities says which rules a control client may ask for, by what they need.
type Capabilities struct{ IPv4, IPv6, TCP, UDP, Namespace bool }

// Capabilities of the instance.
func (p *Plan) Capabilities() Capabilities {
	return Capabilities{
		IPv4: p.net.v4.enabled, IPv6: p.net.v6.enabled, TCP: !p.cfg.NoTCP, UDP: !p.cfg.NoUDP,
		Namespace: !p.cfg.Machine(),
	}
}

// HostListener describes the listener of one of an inbound rule's ports on the
// host.
func (p *Plan) HostListener(r *cli.Rule, port uint16) sockets.Listener {
	return sockets.Listener{
		Proto: r.Proto, Addr: r.Addr, Interface: r.Interface,
		Port: port, GuestPort: r.TargetPort + (port - r.First), Target: r.TargetAddr,
		Splice: !p.cfg.Machine() && !p.cfg.NoSplice,
	}
}

// NamespaceListener describes the listener of one of an outbound rule's ports in
// the namespace, whose socket the agent opens.
func (p *Plan) NamespaceListener(r *cli.Rule, port uint16, fd int) sockets.Listener {
	return sockets.Listener{
		Proto: r.Proto, Port: port, GuestPort: r.TargetPort + (port - r.First), Target: r.TargetAddr,
		Namespace: true, FD: fd,
	}
}

// NamespaceSocket is what the agent is asked for first, for one of an outbound
// rule's ports: a socket on lo, for both families where both are enabled.
func (p *Plan) NamespaceSocket(r *cli.Rule, port uint16) ipc.AgentOpen {
	o := ipc.AgentOpen{Proto: r.Proto, Flags: ipc.AgentOpenBind | ipc.AgentOpenListen | ipc.AgentOpenDevice, LocalPort: port}
	switch v4, v6 := p.families(r); {
	case !v6:
		o.Flags |= ipc.AgentOpenIPv4
	case v4:
		o.Flags |= ipc.AgentOpenDual
	}
	return o
}

// LoopbackSockets are what takes its place with kernels that do not let the agent
// bind to a device (before 5.7, without capabilities): one for each loopback
// address.
func (p *Plan) LoopbackSockets(r *cli.Rule, port uint16) (all []ipc.AgentOpen) {
	o := ipc.AgentOpen{Proto: r.Proto, Flags: ipc.AgentOpenBind | ipc.AgentOpenListen, LocalPort: port}
	v4, v6 := p.families(r)
	if v4 {
		o := o
		o.Flags |= ipc.AgentOpenIPv4
		o.Local = netip.AddrFrom4([4]byte{127, 0, 0, 1}).As16()
		all = append(all, o)
	}
	if v6 {
		o.Local = netip.IPv6Loopback().As16()
		all = append(all, o)
	}
	return all
}

// families tells on which a rule listens.
func (p *Plan) families(r *cli.Rule) (v4, v6 bool) {
	v4 = p.net.v4.enabled && (!r.Addr.IsValid() || r.Addr.Is4())
	v6 = p.net.v6.enabled && (!r.Addr.IsValid() || r.Addr.Is6())
	return v4, v6
}
