// SPDX-License-Identifier: Apache-2.0

//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0
//go:debug decoratemappings=0

// Command aldente connects virtual machines and network namespaces to the
// network, as passt and pasta do and under their names. This is the broker: the
// process with the caller's authority. It opens every socket and never sees a
// packet; a worker of its own makes packets of what the sockets carry, and an
// agent works inside the guest's namespace.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"

	"aldente/broker/agent"
	"aldente/broker/budget"
	"aldente/broker/cli"
	"aldente/broker/hostnet"
	"aldente/broker/netns"
	"aldente/broker/ports"
	"aldente/broker/sockets"
	"aldente/broker/startup"
	"aldente/broker/supervise"
	"aldente/ipc"
	"aldente/policy"
)

// errLimits is why this process cannot do what it is for, with the limits that
// it was started under.
var errLimits error

func init() {
	// Before the last line, which makes a thread. What the agent needs the broker
	// has counted in.
	if os.Args[0] != netns.AgentName {
		if errLimits = startup.Limits(-1, -1); errLimits != nil {
			return
		}
	}
	// Children die with the thread that made them: all are made by this one,
	// which lives as long as the process.
	runtime.LockOSThread()
}

// minProcs keeps a processor idle, in the Go scheduler's terms, while the others
// wait in system calls: its monitor then need not look after each of these.
const minProcs = 4

func main() {
	if os.Args[0] == netns.AgentName {
		agent.Main()
		return
	}
	inherited := tidyDescriptors()
	runtime.GOMAXPROCS(max(runtime.NumCPU(), minProcs))
	notify := readyFD()
	cfg, err := cli.Parse(os.Args)
	if err == nil {
		if text, ok := cfg.Answer(os.Args[0]); ok {
			fmt.Print(text)
			return
		}
		err = cfg.Unsupported()
	}
	if err == nil {
		err = cmp.Or(errLimits, checkExecutable(), usable(cfg))
	}
	if err != nil {
		os.Exit(cli.Report(os.Stderr, err))
	}
	closeInherited(inherited, notify, cfg.FD)
	if cfg.Action == cli.ActionSelfTest {
		os.Exit(selfTest(cfg))
	}
	if !cfg.Foreground && cfg.Target.Kind != cli.TargetSpawn && notify < 0 {
		status, err := background(cfg)
		if err != nil {
			complain(err)
		}
		os.Exit(status)
	}
	os.Exit(run(cfg, notify))
}

// instance is one guest, connected.
type instance struct {
	cfg       *cli.Config
	log       *slog.Logger
	out       *logOutput
	net       guestNet
	resolvers hostnet.Resolvers // the host's
	factory   *sockets.Factory
	limits    budget.Limits
	worker    *supervise.Supervisor
	first     chan error // outcome of the first worker's start
	agent     *agent.Client
	child     *netns.Child     // the command, if we started one
	ns        *netns.Namespace // the guest's
	watch     *netns.Watcher
	stream    *streamServer // passt: where virtual machines connect
	capture   *capture      // -p, nil: none
	null      int           // /dev/null, for standard streams in the background

	pidFile int    // -P until it is written, -1: none
	started func() // ends the time in which a signal ends start-up
	undo    undo   // what start-up leaves behind if it does not come to its end

	forward forwarding

	locked chan struct{} // closed when this process is confined

	// Set by attach, read by those who start workers: closed when link and
	// config are there, or nil records if they never will be.
	attached chan struct{}
	config   *ipc.Config
	link     ipc.Link
	linkFD   int
}

// run does everything between parsed options and the exit status.
func run(cfg *cli.Config, notify int) int {
	signals := catchSignals()
	log, out, err := newLog(cfg)
	if err != nil {
		complain(err)
		return 1
	}
	in := &instance{cfg: cfg, log: log, out: out, linkFD: -1, pidFile: -1, attached: make(chan struct{}), locked: make(chan struct{})}
	for _, w := range cfg.Warnings {
		log.Warn(w)
	}
	status, err := in.run(notify, signals)
	if err != nil {
		log.Error(err.Error())
	}
	return status
}

// run starts the instance and stays until its end.
func (in *instance) run(notify int, signals <-chan os.Signal) (status int, err error) {
	cfg := in.cfg
	in.started = in.endEarly(signals)
	defer func() {
		if err != nil {
			in.undo.all()
		}
	}()
	if id := unprivileged(cfg); id.changes() {
		policy.NonDumpable() // before there is somebody else to look in
		if err := startup.Limits(int(id.own.UID), int(id.own.GID)); err != nil {
			return 1, err
		}
	}

	// 1. What the host's network is like, and what the guest's will be.
	host, err := in.discover()
	if err != nil {
		return 1, err
	}

	// 2. Where the guest is: new namespaces for a command, or existing ones,
	// with an agent inside. A virtual machine comes by itself.
	if cfg.Personality != cli.Passt {
		if err := in.enter(); err != nil {
			return 1, err
		}
	}
	ignoreSignals() // not before: the command is to inherit none of it

	// 3. What takes privileges: files, ports. Then away with them.
	if err := in.prepare(host); err != nil {
		return 1, err
	}

	// 4. The worker has started, and waits for the agent to make the tap.
	if cfg.Personality == cli.Passt {
		err = in.attachStream()
	} else {
		err = in.attach(host)
	}
	close(in.attached)

	// 5. While it starts: nothing but sockets is opened from here on, and no
	// process made but a worker's. Lock down.
	<-in.worker.Spawned()
	if err == nil {
		err = in.worker.SpawnError() // before what follows from it
	}
	if err == nil {
		err = in.lockDown(notify)
	}
	if e := <-in.first; err == nil {
		err = e
	}
	if err != nil {
		return 1, err
	}

	// 6. Tell whoever waits that all works now.
	if err := in.announce(notify); err != nil {
		return 1, err
	}
	in.captive()

	// 7. Until the guest is gone, or we are told to go. The tap ends with its
	// last descriptor, which takes the kernel tens of milliseconds: that is
	// to be the agent's, for which nobody waits.
	status, err = in.wait(signals)
	in.tellRefused()
	in.release()
	in.tellUsage()
	if in.linkFD >= 0 {
		unix.Close(in.linkFD)
	}
	return status, err
}

// discover reads the host's network and settles the guest's.
func (in *instance) discover() (*hostnet.Network, error) {
	cfg := in.cfg
	host, err := hostnet.Discover(hostnet.Options{
		Interface: cfg.Interface, Outbound4: cfg.OutboundIf4, Outbound6: cfg.OutboundIf6,
		Skip4: cfg.IPv6Only, Skip6: cfg.IPv4Only,
	})
	if err != nil {
		return nil, err
	}
	if in.resolvers, err = hostnet.ReadResolvers(hostnet.ResolvConf); err != nil {
		in.log.Warn("the host's resolvers are unknown, --dns ADDR names one", "error", err)
	}
	var notes []string
	if in.net, notes, err = settle(cfg, host, in.resolvers); err != nil {
		return nil, err
	}
	for _, n := range notes {
		in.log.Info(n)
	}
	policy, err := in.egress(host)
	if err != nil {
		return nil, err
	}
	in.forwardResolvers(host, in.resolvers, asked(policy))
	in.noteNames(in.resolvers)
	fc := in.net.factoryConfig(cfg)
	fc.Logger = in.log
	if fc.Policy = asked(policy); policy != nil {
		in.pinResolvers(policy)
	}
	if slices.ContainsFunc(in.rules(inbound), func(r *cli.Rule) bool { return r.Proto == ipc.ProtoUDP }) {
		clients, err := ports.OpenClients()
		if err != nil {
			in.log.Warn("clients of the host's own cannot be told from services: some get no answer from UDP ports of the guest", "error", err)
		} else {
			fc.Client = clients.Connected
		}
	}
	in.factory = sockets.New(fc)
	in.limit()
	if err := in.factory.KnowPorts(); err != nil {
		in.log.Warn("cannot tell who is on a port: flows of the guest share none", "error", err)
	}
	return host, nil
}

// enter makes or opens the guest's namespaces and starts the agent there.
func (in *instance) enter() error {
	ids := unprivileged(in.cfg)
	if in.cfg.Target.Kind == cli.TargetSpawn {
		c := netns.Command{
			Path: in.cfg.Command[0], Args: append([]string(nil), in.cfg.Command...),
			HostnamePrefix: in.cfg.Personality.String() + "-",
			NoPIDNS:        in.cfg.NoPidns,
			HideSockets:    in.cfg.HideSockets,
			ResolvConf:     in.commandResolv(in.resolvers),
			UID:            int(ids.UID), GID: int(ids.GID),
		}
		if in.cfg.LoginShell {
			c.Args[0] = "-" + c.Path
		}
		child, err := netns.Create(c)
		if err != nil {
			return err
		}
		in.child, in.ns = child, &child.Namespace
	} else {
		ns, err := netns.Open(in.target())
		if err != nil {
			return err
		}
		in.ns = ns
		if err := in.watchNamespace(); err != nil {
			return err
		}
	}
	if ids.changes() {
		in.ns.SetAgentIDs(int(ids.own.UID), int(ids.own.GID))
	}
	var err error
	in.agent, err = agent.Start(in.ns, in.agentSays())
	return err
}

func (in *instance) target() netns.Target {
	t := in.cfg.Target
	n := netns.Target{UserPath: in.cfg.Userns, NetnsOnly: in.cfg.NetnsOnly}
	switch t.Kind {
	case cli.TargetPID:
		n.PID = t.PID
	case cli.TargetPath:
		n.Path = t.Path
	case cli.TargetName:
		n.Path = t.Name
	}
	return n
}

// watchNamespace has the end of an existing namespace noticed, where it counts.
func (in *instance) watchNamespace() (err error) {
	if in.cfg.NoNetnsQuit {
		return nil
	}
	if in.watch, err = in.ns.Watch(); err != nil {
		return err
	}
	if why := in.watch.Polls(); why != nil {
		in.log.Info("the namespace's path is looked up once a second, since it cannot be watched", "error", why)
	}
	return nil
}

// prepare opens what the caller may and nobody may not, has the worker's process
// made, whose namespaces are the caller's too, and then becomes nobody if the
// caller was root.
func (in *instance) prepare(host *hostnet.Network) error {
	if err := in.listen(); err != nil {
		return err
	}
	var err error
	if in.capture, err = openCapture(in.cfg, in.log); err != nil {
		return err
	}
	if err := in.openPID(); err != nil {
		return err
	}
	mode := "tap"
	if in.cfg.Personality == cli.Passt {
		mode = "stream"
	}
	in.factory.OnEvent = in.workerEvent
	id := unprivileged(in.cfg)
	in.worker, err = supervise.New(supervise.Options{
		Identity: id.worker(),
		Logger:   in.log, Mode: mode, Strict: in.cfg.Strict, Debug: in.cfg.Debug, Trace: in.cfg.Trace,
		Setup:    in.setUpWorker,
		Serve:    in.serveWorker,
		FileSize: in.capture.bound(), Files: in.limits.Sockets,
		OnExit: func(supervise.Exit) {
			in.workerGone()
			in.capture.workerGone()
			if in.stream != nil {
				in.stream.workerGone()
			}
			in.workerEvent(ipc.EventLinkClosed)
		},
	})
	if err != nil {
		return err
	}
	in.first = make(chan error, 1)
	go func() { in.first <- in.worker.Start() }()
	if id.changes() {
		<-in.worker.Spawned()
		if err := in.dropPrivileges(id); err != nil {
			return err
		}
	}
	switch {
	case in.cfg.Personality != cli.Passt:
	case in.cfg.FD >= 0:
		in.stream = givenStream(in.log)
	default:
		if in.stream, err = listenStream(in.cfg.SocketPath, in.cfg.OneOff, in.log); err == nil {
			in.undo.add(in.stream.path)
		}
	}
	return err
}

// attachStream completes what a worker needs to know to serve a virtual
// machine: its hardware address is learned, its link comes when it connects.
func (in *instance) attachStream() error {
	config, err := in.net.workerConfig(in.cfg, [6]byte{})
	if err != nil {
		return err
	}
	if in.cfg.FD >= 0 {
		if err := unix.SetNonblock(in.cfg.FD, true); err != nil {
			return fmt.Errorf("-F %d: %w", in.cfg.FD, err)
		}
		unix.CloseOnExec(in.cfg.FD)
		enlarge(in.cfg.FD)
		in.link, in.linkFD = ipc.Link{Kind: ipc.LinkStream}, in.cfg.FD
	}
	in.tellLimits(config)
	in.config = config
	in.summary("")
	return nil
}

// tapQueue is the length of the tap's queue towards us, in packets. A tap has
// no back-pressure but windows: what 64 bulk flows have in flight, with the
// acknowledgments of as many others, has to fit.
const tapQueue = 16384

// attach has the agent make the tap and the listeners in the namespace, and with
// that completes what a worker needs to know.
func (in *instance) attach(host *hostnet.Network) error {
	in.agent.Confine(len(in.cfg.TCPNS.Rules)+len(in.cfg.UDPNS.Rules) > 0)
	if in.scans() {
		in.agent.Scans()
	}
	tap, err := in.makeTap(host)
	if err != nil {
		return err
	}
	if err := in.tell("agent", in.agent.Layers()); err != nil {
		return err
	}
	if err := in.enterForwarding(tap.IfIndex); err != nil {
		return err
	}
	config, err := in.net.workerConfig(in.cfg, tap.MAC)
	if err != nil {
		return err
	}
	in.tellLimits(config)
	in.config = config
	in.summary(tap.Name)
	return nil
}

// makeTap connects the namespace to a link, unless only its loopback counts.
func (in *instance) makeTap(host *hostnet.Network) (agent.Tap, error) {
	cfg := in.cfg
	if cfg.SpliceOnly {
		return agent.Tap{}, in.agent.SetupLoopback()
	}
	s := agent.Setup{Name: cfg.NSIfName, MAC: cfg.NSMAC, MTU: cfg.MTU, QueueLen: tapQueue, Configure: cfg.ConfigNet}
	if s.Name == "" {
		s.Name = host.TapName()
	}
	if s.MTU < 0 {
		s.MTU = defaultMTU
	}
	if in.net.v4.enabled {
		s.V4 = agent.Copy(&host.V4, in.net.v4.given(), cfg.Gateway4)
	}
	if in.net.v6.enabled {
		s.V6 = agent.Copy(&host.V6, in.net.v6.given(), cfg.Gateway6)
	}
	if cfg.ConfigNet {
		in.net.v4.reach(&s.V4)
		in.net.v6.reach(&s.V6)
	}
	tap, err := in.agent.Setup(s)
	if err != nil {
		return tap, err
	}
	for _, w := range tap.Warnings {
		in.log.Warn(w)
	}
	in.link = ipc.Link{Kind: ipc.LinkTap, Offload: tap.Offload}
	in.linkFD = tap.FD
	return tap, nil
}

// announce lets the command run, or the caller go on.
func (in *instance) announce(notify int) error {
	if !in.cfg.NoICMP && !sockets.EchoAllowed() {
		in.log.Info("pings need a group of ours in sysctl net.ipv4.ping_group_range: echo requests will not be forwarded")
	}
	if in.stream != nil && in.stream.fd >= 0 {
		in.log.Info("UNIX domain socket bound at " + in.stream.path)
		go in.stream.serve(in.worker)
	}
	if in.child != nil {
		warnings, err := in.child.Ready()
		if err != nil {
			return err
		}
		for _, w := range warnings {
			in.log.Warn(w)
		}
		in.started()
		if err := in.writePID(os.Getpid()); err != nil {
			return err
		}
		return in.child.Release()
	}
	in.started()
	if err := in.writePID(os.Getpid()); err != nil {
		return err
	}
	if notify >= 0 {
		in.out.detach()
		return ready(notify, in.null)
	}
	return nil
}

// wait returns the exit status once there is a reason to end. What is left the
// kernel ends: worker and agent die with this process.
func (in *instance) wait(signals <-chan os.Signal) (int, error) {
	var exited <-chan childExit
	if in.child != nil {
		exited = waitChild(in.child)
	}
	var gone <-chan struct{}
	if in.watch != nil {
		gone = in.watch.Gone()
	}
	var served <-chan struct{}
	if in.stream != nil {
		served = in.stream.done
	}
	for {
		select {
		case <-served:
			return 0, nil
		case e := <-exited:
			return e.status, e.err
		case <-gone:
			in.log.Info("the namespace is gone")
			return 0, nil
		case <-in.worker.Done():
			return 1, errors.New("the worker cannot be started again")
		case s := <-signals:
			if in.child != nil && passOn(in.child, s) {
				continue
			}
			return 0, nil
		}
	}
}

// agentSays takes the agent's last words into the log: the first line, which has
// the reason, and where it happened only for who wants to know.
func (in *instance) agentSays() func(line string) {
	level := slog.LevelError
	return func(line string) {
		in.log.Log(context.Background(), level, line, "component", "agent")
		level = slog.LevelDebug
	}
}

type childExit struct {
	status int
	err    error
}

func waitChild(c *netns.Child) <-chan childExit {
	done := make(chan childExit, 1)
	go func() {
		status, err := c.Wait()
		if failed := (*netns.ExecError)(nil); errors.As(err, &failed) {
			status = 1 // as the original: ours to report, not the command's
		}
		done <- childExit{status, explain(err)}
	}()
	return done
}
