// SPDX-License-Identifier: Apache-2.0

//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0
//go:debug decoratemappings=0

// Command aldente connects virtual machines and network namespaces to the
// network, as passt and pasta do and under their names. This is the broker: the
// process with the caller's authority. It opens every socket and never sees a
// packet; a worker of its own makes packets of what the sockets carry, and an
// agent works inside the guest's namespace. Where egress rules are by name, a fourth
// process answers the guest's questions for names.
package main

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"aldente/broker/agent"
	"aldente/broker/audit"
	"aldente/broker/cli"
	"aldente/broker/control"
	"aldente/broker/figures"
	"aldente/broker/flowlog"
	"aldente/broker/forward"
	"aldente/broker/guestsock"
	"aldente/broker/inet"
	"aldente/broker/logging"
	"aldente/broker/names"
	"aldente/broker/netns"
	"aldente/broker/plan"
	"aldente/broker/service"
	"aldente/broker/sockets"
	"aldente/broker/startup"
	"aldente/broker/supervise"
	"aldente/ipc"
	"aldente/policy"
	"aldente/policy/quiet"
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
	// Until all has started, which is a sequence for the most part. With more, goroutines
	// take turns on several threads, each with pages of its own.
	runtime.GOMAXPROCS(1)
	notify := readyFD()
	cfg, err := cli.Parse(os.Args)
	if err == nil {
		if text, ok := cfg.Text(os.Args[0]); ok {
			fmt.Print(text)
			return
		}
		err = cfg.Unsupported()
	}
	if err == nil && cfg.Action == cli.ActionCheckRules {
		os.Exit(checkRules(cfg))
	}
	if err == nil {
		cfg, err = withRules(cfg)
	}
	if err == nil {
		err = cmp.Or(errLimits, checkExecutable(), usable(cfg), passedOn(cfg, inherited))
	}
	var sockets passed
	if err == nil {
		sockets, err = takePassed(cfg, inherited)
	}
	if err != nil {
		os.Exit(cli.Report(os.Stderr, err))
	}
	closeInherited(inherited, slices.Concat(callersFDs(cfg), namespaceFDs(cfg), sockets.fds(), []int{notify, cfg.FD, cfg.ViaSecretFD})...)
	if cfg.Action == cli.ActionSelfTest {
		os.Exit(selfTest(cfg))
	}
	if !cfg.Foreground && cfg.Target.Kind != cli.TargetSpawn && notify < 0 {
		status, err := background(cfg)
		if err != nil {
			logging.Complain(err)
		}
		os.Exit(status)
	}
	os.Exit(run(cfg, sockets, notify))
}

// instance is one guest, connected.
type instance struct {
	cfg       *cli.Config
	log       *slog.Logger
	out       *logging.Output
	plan      *plan.Plan
	factory   *sockets.Factory
	worker    *supervise.Supervisor
	first     chan error            // outcome of the first worker's start
	names     *names.Server         // nil: no egress rule is by name
	asking    *supervise.Supervisor // of aldente-names, nil: none
	agent     *agent.Client
	child     *netns.Child     // the command, if we started one
	ns        *netns.Namespace // the guest's
	watch     *netns.Watcher
	net       following         // the host's network
	resolvers resolvers         // and its resolvers
	rules     rules             // and what reads them again
	stream    *guestsock.Server // passt: where virtual machines connect
	passed    passed            // by the service manager
	manager   service.Manager   // that is told when all is ready
	capture   *capture          // -p, nil: none
	flows     *flowlog.Log      // --flow-log, nil: none
	flowLog   flowlog.Options   // it is made of them; without Logger: none
	audit     *audit.Log        // --audit, nil: none
	null      int               // /dev/null, for standard streams in the background

	firstNames chan error // outcome of the start of names
	proxy      *ipc.Proxy // --via, nil: none

	pidFile int    // -P until it is written, -1: none
	started func() // ends the time in which a signal ends start-up
	undo    undo   // what start-up leaves behind if it does not come to its end

	figures  *figures.Collector
	forward  *forward.Forwarder
	control  *control.Server  // -c, nil: none
	hostfwd  *control.Hostfwd // slirp4netns's -a, nil: none
	status   *control.Status  // --control and the default, nil: none
	shown    shown            // what its clients are told
	captures captures         // that clients look at

	rechecking sync.Mutex // held while flows end in the background that new rules refuse

	locked chan struct{} // closed when this process is confined

	// Set by attach, read by those who start workers: closed when link and
	// net.config are there, or nil records if they never will be.
	attached chan struct{}
	link     ipc.Link
	linkFD   int
}

// run does everything between parsed options and the exit status.
func run(cfg *cli.Config, sockets passed, notify int) int {
	signals := catchSignals()
	began := time.Now()
	log, out, level, err := newLog(cfg)
	if err != nil {
		logging.Complain(err)
		return 1
	}
	in := &instance{cfg: cfg, passed: sockets, log: log, out: out, shown: shown{level: level, began: began},
		linkFD: -1, pidFile: -1, attached: make(chan struct{}), locked: make(chan struct{})}
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
func (in *instance) run(notify int, signals chan os.Signal) (status int, err error) {
	cfg := in.cfg
	in.started = in.endEarly(signals, notify >= 0)
	defer func() {
		if err != nil {
			in.undo.all()
		}
		in.closeControl()
	}()
	if id := unprivileged(cfg); id.changes() {
		policy.NonDumpable() // before there is somebody else to look in
		if err := startup.Limits(int(id.own.UID), int(id.own.GID)); err != nil {
			return 1, err
		}
	}

	if err := in.openFlowLog(); err != nil {
		return 1, err
	}
	if err := in.openAudit(); err != nil {
		return 1, err
	}
	if cfg.SDNotify {
		if in.manager, err = service.Find(); err != nil {
			return 1, err
		}
	}
	if err := in.setUp(notify); err != nil {
		return 1, err
	}

	// Tell whoever waits that all works now.
	if err := in.announce(notify); err != nil {
		return 1, err
	}
	runtime.GOMAXPROCS(max(runtime.NumCPU(), minProcs))
	in.followNetwork()
	in.awaitReloads()
	in.serveControl()
	in.tellReady()
	if err := in.manager.Ready(); err != nil {
		in.log.Warn("the service manager is not told that all is ready", "error", err)
	}
	in.captive()
	quiet.Collector()

	// Until the guest is gone, or we are told to go. The tap ends with its
	// last descriptor, which takes the kernel tens of milliseconds: that is
	// to be the agent's, for which nobody waits.
	status, err = in.wait(signals)
	in.tellRefused()
	in.endFlowLog()
	in.endAudit()
	in.forward.Release()
	in.tellUsage()
	if in.linkFD >= 0 {
		unix.Close(in.linkFD)
	}
	return status, err
}

// setUp is what a run and a self-test have in common: all until the process is
// locked down and a worker runs.
func (in *instance) setUp(notify int) error {
	cfg := in.cfg

	// 1. What the host's network is like, and what each part is told for that.
	host, err := in.discover()
	if err != nil {
		return err
	}
	if in.plan, err = plan.New(cfg, host); err != nil {
		return err
	}
	for _, n := range in.plan.Notes {
		in.log.Info(n)
	}
	in.makeFactory()
	in.forward = forward.New(in.plan, in.factory, firstOpen(), in.log)

	// 2. Where the guest is: new namespaces for a command, or existing ones,
	// with an agent inside. A virtual machine comes by itself.
	if !cfg.Machine() {
		if err := in.enter(); err != nil {
			return err
		}
	}
	in.ignoreSignals() // not before: the command is to inherit none of it

	// 3. What takes privileges: files, ports. Then away with them.
	if err := in.prepare(); err != nil {
		return err
	}

	// 4. The worker has started, and waits for the agent to make the tap.
	if cfg.Machine() {
		err = in.attachStream()
	} else {
		err = in.attach()
	}
	close(in.attached)

	<-in.worker.Spawned()
	if err == nil {
		err = in.worker.SpawnError() // before what follows from it
	}
	if e := in.namesSpawned(); err == nil {
		err = e
	}
	if e := <-in.first; err == nil {
		err = e
	}
	if e := in.namesReady(); err == nil {
		err = e
	}

	// 5. The worker is ready. Nothing but sockets is opened from here on, and no
	// process made but a worker's; nothing is waited for that may take its time.
	// Lock down.
	if err == nil {
		err = in.lockDown(notify)
	}
	return err
}

// mode is the worker's: what it has to be allowed goes by its link.
func (in *instance) mode() string {
	switch {
	case in.cfg.LinkKind == ipc.LinkVhostUser:
		return policy.ModeVhostUser
	case in.cfg.Machine():
		return policy.ModeStream
	}
	return policy.ModeTap
}

// prepare opens what the caller may and nobody may not, has the worker's process
// made, whose namespaces are the caller's too, and then becomes nobody if the
// caller was root.
func (in *instance) prepare() error {
	if err := in.listenPorts(); err != nil {
		return err
	}
	var err error
	if in.capture, err = openCapture(in.cfg, in.log); err != nil {
		return err
	}
	if err := in.openPID(); err != nil {
		return err
	}
	if err := in.prepareRules(); err != nil {
		return err
	}
	in.prepareResolvers()
	// Where the caller may make files, or, with --runas, that user.
	user := os.Geteuid()
	in.listenStatus(user)
	if in.cfg.RunAs == nil {
		if err := in.listenControl(user); err != nil {
			return err
		}
	}
	in.factory.OnEvent = in.workerEvent
	if in.cfg.LinkKind == ipc.LinkVhostUser {
		in.factory.OnInflight = func(r *ipc.Inflight) { in.stream.Inflight(r) }
	}
	in.figures = figures.New(in.factory)
	in.factory.OnFigures = in.figures.Take
	id := unprivileged(in.cfg)
	in.worker, err = supervise.New(supervise.Options{
		Program:  supervise.Worker,
		Identity: id.worker(),
		Logger:   in.log, Mode: in.mode(), Strict: in.cfg.Strict, Debug: in.cfg.Debug, Trace: in.cfg.Trace,
		Setup:    in.setUpWorker,
		Serve:    in.serveWorker,
		OnReady:  in.workerReady,
		FileSize: in.capture.bound(), Files: in.plan.Limits.Sockets,
		OnExit: func(e supervise.Exit) {
			in.figures.WorkerGone()
			in.shown.ends.note(e)
			in.forward.WorkerGone()
			in.capture.workerGone()
			if in.stream != nil {
				in.stream.WorkerGone()
			}
		},
	})
	if err != nil {
		return err
	}
	in.forward.SetWorker(in.worker)
	in.factory.PassOn(in.worker.Send)
	in.captures.send = in.worker.Send
	in.figures.SetWorker(in.worker)
	in.first = make(chan error, 1)
	go func() { in.first <- in.worker.Start() }()
	if err := in.prepareNames(id); err != nil {
		return err
	}
	if id.changes() {
		<-in.worker.Spawned()
		_ = in.namesSpawned() // setUp tells
		if err := in.dropPrivileges(id); err != nil {
			return err
		}
	}
	if in.cfg.RunAs != nil {
		if err := in.listenControl(user); err != nil {
			return err
		}
	}
	switch {
	case !in.cfg.Machine():
	case in.cfg.FD >= 0:
		in.stream = guestsock.Given(in.cfg.LinkKind, in.log)
		err = in.stream.SetClient(in.cfg.FD)
	default:
		in.undo.making.Lock()
		defer in.undo.making.Unlock()
		if in.stream, err = in.listenGuest(); err == nil && in.passed.guest == nil {
			var st unix.Stat_t
			if unix.Lstat(in.stream.Path(), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFSOCK {
				in.undo.add(in.stream.Path(), &st)
			}
		}
	}
	if err == nil {
		err = id.dropEffective()
	}
	return err
}

// announce lets the command run, or the caller go on.
func (in *instance) announce(notify int) error {
	if !in.cfg.NoICMP && !inet.PingAllowed() {
		in.log.Info("pings need a group of ours in sysctl net.ipv4.ping_group_range: echo requests will not be forwarded")
	}
	if in.stream != nil && in.stream.Path() != "" {
		in.log.Info("UNIX domain socket bound at " + in.stream.Path())
		go in.stream.Serve(in.worker)
	} else if in.stream != nil {
		in.stream.Watch(in.cfg.FD, in.worker)
	}
	if in.child != nil {
		warnings, err := in.childReady()
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
		in.out.Detach()
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
	exit := in.awaitExitFD()
	var served <-chan struct{}
	if in.stream != nil {
		served = in.stream.Done()
	}
	for {
		select {
		case <-served:
			return 0, nil
		case <-exit:
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
