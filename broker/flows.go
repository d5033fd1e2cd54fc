// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"

	"aldente/broker/audit"
	"aldente/broker/flowlog"
	"aldente/broker/limiter"
	"aldente/broker/logging"
	"aldente/ipc"
)

// systemLog is the word for --flow-log that is no file.
const systemLog = "syslog"

// How many lines the flow log takes: what a guest can have written is bounded. The
// system log is everybody's.
var (
	flowLines       = limiter.Rate{PerSecond: 2000, Burst: 20000}
	systemFlowLines = limiter.Rate{PerSecond: 200, Burst: 2000}
)

// maxFlowLog bounds the flows that are remembered until they end.
const maxFlowLog = 128 << 10

// openFlowLog opens what --flow-log names, as the caller.
func (in *instance) openFlowLog() (err error) {
	cfg := in.cfg
	o := logging.Options{Tag: cfg.Personality.String(), Size: cfg.LogSize, Guarded: guarded(cfg)}
	switch cfg.FlowLog {
	case "":
		return nil
	case systemLog:
		in.flowLog.Rate = systemFlowLines
	case cfg.LogFile:
		return fmt.Errorf("flow log %s: that is the log file (name another)", cfg.FlowLog)
	default:
		o.File, in.flowLog.Rate = cfg.FlowLog, flowLines
	}
	in.flowLog.Logger, err = in.out.Flows(o)
	return err
}

// makeFlowLog makes the flow log, nil if there is none.
func (in *instance) makeFlowLog() *flowlog.Log {
	if in.flowLog.Logger == nil {
		return nil
	}
	o := in.flowLog
	o.Max = min(in.plan.Limits.Sockets, maxFlowLog)
	o.Guest = given(&in.plan.Worker)
	in.flows = flowlog.New(o)
	return in.flows
}

// given are the addresses that the guest is given, invalid where there is none.
func given(c *ipc.Config) (all [2]netip.Addr) {
	for k, a := range [][16]byte{c.Addr4, c.Addr6} {
		if a != [16]byte{} {
			all[k] = netip.AddrFrom16(a).Unmap()
		}
	}
	return all
}

// endFlowLog tells of the flows that end with the instance.
func (in *instance) endFlowLog() {
	if in.flows != nil {
		in.flows.Gone(flowlog.Stopped)
	}
}

// openAudit opens what --audit names, as the caller.
func (in *instance) openAudit() (err error) {
	if in.cfg.Audit == "" {
		return nil
	}
	for _, other := range []string{in.cfg.LogFile, in.cfg.FlowLog} {
		if other == in.cfg.Audit {
			return fmt.Errorf("--audit %s: that is another log (name a file of its own)", other)
		}
	}
	in.audit, err = audit.Open(in.cfg.Audit, guarded(in.cfg))
	if err == nil {
		in.log.Warn("what rules that deny any refuse is allowed, and recorded (without --audit it is refused)", "file", in.cfg.Audit)
	}
	return err
}

// endAudit completes the record.
func (in *instance) endAudit() {
	if in.audit == nil {
		return
	}
	if err := in.audit.Close(); err != nil {
		in.log.Error("the record of --audit is not whole", "file", in.cfg.Audit, "error", err)
	}
}
