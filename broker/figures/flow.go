// SPDX-License-Identifier: Apache-2.0

package figures

import (
	"net/netip"
	"time"

	"aldente/broker/control/api"
	"aldente/ipc"
)

var directions = [ipc.FlowDirections]string{
	ipc.FlowOut: "out", ipc.FlowIn: "in", ipc.FlowBypassOut: "bypass-out", ipc.FlowBypassIn: "bypass-in",
}

var states = [ipc.FlowStates]string{
	ipc.FlowOpen: "open", ipc.FlowOpening: "opening", ipc.FlowUnanswered: "unanswered", ipc.FlowRefused: "refused",
	ipc.FlowSynSent: "SYN-SENT", ipc.FlowSynReceived: "SYN-RECEIVED", ipc.FlowEstablished: "ESTABLISHED",
	ipc.FlowFinWait1: "FIN-WAIT-1", ipc.FlowFinWait2: "FIN-WAIT-2", ipc.FlowCloseWait: "CLOSE-WAIT",
	ipc.FlowClosing: "CLOSING", ipc.FlowLastAck: "LAST-ACK", ipc.FlowTimeWait: "TIME-WAIT",
}

var protocols = map[uint8]string{ipc.ProtoTCP: "tcp", ipc.ProtoUDP: "udp", ipc.ProtoICMP: "icmp", ipc.ProtoICMPv6: "icmp"}

// describe puts a flow into words. Preconditions: it was decoded.
func describe(f *ipc.Flow) api.Flow {
	d := api.Flow{
		Protocol: protocols[f.Proto], Direction: directions[f.Direction], State: states[f.State],
		Guest: end(f.Guest, f.GuestPort, true), Remote: end(f.Remote, f.RemotePort, f.RemotePort != 0),
		Age: seconds(f.Age), Idle: seconds(f.Idle), RTT: float64(f.RTT) / 1e6,
		Sent: f.Sent, Received: f.Received, SentPackets: f.SentPackets, ReceivedPackets: f.ReceivedPackets,
		Retransmits: f.Retransmits, Queued: f.Queued,
	}
	return d
}

// end is an address and maybe a port, empty where it is not known.
func end(addr [16]byte, port uint16, hasPort bool) string {
	if addr == [16]byte{} {
		return ""
	}
	a := netip.AddrFrom16(addr).Unmap()
	if !hasPort {
		return a.String()
	}
	return netip.AddrPortFrom(a, port).String()
}

func seconds(ns uint64) float64 { return float64(ns) / float64(time.Second) }
