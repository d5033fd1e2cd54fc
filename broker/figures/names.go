// SPDX-License-Identifier: Apache-2.0

package figures

import (
	"slices"

	"aldente/broker/budget"
	"aldente/broker/control/api"
	"aldente/ipc"
)

// name is what a figure is called. Those with the same name have the same help and
// differ by a label.
type name struct {
	name, help string
	labels     map[string]string
}

func label(k, v string) map[string]string { return map[string]string{k: v} }

func labels(k1, v1, k2, v2 string) map[string]string { return map[string]string{k1: v1, k2: v2} }

// Names that several counters share.

func frames(result string) name {
	return name{"guest_frames_total", "Frames and super-frames from the guest, by what has become of them.", label("result", result)}
}

func sent(result string) name {
	return name{"frames_to_guest_total", "Frames and super-frames to the guest, by what has become of them.", label("result", result)}
}

func onLink(direction string) name {
	return name{"link_frames_total", "Frames on the link, as they are on the wire.", label("direction", direction)}
}

func linkBytes(direction string) name {
	return name{"link_bytes_total", "Bytes of the frames on the link.", label("direction", direction)}
}

func linkErrors(reason string) name {
	return name{"link_dropped_frames_total", "Frames on the link that went no further.", label("reason", reason)}
}

func fragments(result string) name {
	return name{"fragmented_datagrams_total", "Datagrams that came from the guest in fragments, by what has become of them.", label("result", result)}
}

func flows(protocol, event string) name {
	return name{"flow_events_total", "What has happened to flows: opened by the guest, accepted from outside, refused, reset, evicted for others, and so on.",
		labels("protocol", protocol, "event", event)}
}

func moved(protocol, direction string) name {
	return name{"datagrams_total", "Datagrams, and echo messages, that were passed on.", labels("protocol", protocol, "direction", direction)}
}

func dropped(protocol, reason string) name {
	return name{"dropped_packets_total", "Packets that were not passed on.", labels("protocol", protocol, "reason", reason)}
}

func tcp(event string) name {
	return name{"tcp_segment_events_total", "What has happened to TCP segments on the link.", label("event", event)}
}

func errorsTold(protocol string) name {
	return name{"icmp_errors_to_guest_total", "ICMP errors that were sent to the guest.", label("protocol", protocol)}
}

func bypassBytes(way string) name {
	return name{"bypass_bytes_total", "Bytes of TCP that went past the link.", label("way", way)}
}

// counters names all of ipc.Counters.
var counters = map[string]name{
	"lane.Frames": frames("received"), "lane.BadFrames": frames("malformed"), "lane.BadChecksums": frames("wrong_checksum"),
	"lane.Ignored": frames("ignored"), "lane.Sent": sent("taken"), "lane.SendDropped": sent("dropped"),

	"link.Received": onLink("from_guest"), "link.Sent": onLink("to_guest"),
	"link.ReceivedBytes": linkBytes("from_guest"), "link.SentBytes": linkBytes("to_guest"),
	"link.Malformed": linkErrors("malformed"), "link.Dropped": linkErrors("guest_full"), "link.Refused": linkErrors("impossible"),

	"fragments.Completed": fragments("completed"), "fragments.Overlapped": fragments("overlapped"),
	"fragments.TimedOut": fragments("timed_out"), "fragments.Evicted": fragments("evicted"),

	"tcp.Opened": flows("tcp", "opened"), "tcp.Accepted": flows("tcp", "accepted"), "tcp.Refused": flows("tcp", "refused"),
	"tcp.Reset": flows("tcp", "reset"), "tcp.NoMemory": flows("tcp", "no_room"), "tcp.Evicted": flows("tcp", "evicted"),
	"tcp.Revoked": flows("tcp", "revoked"), "tcp.NoFlow": tcp("no_connection"), "tcp.BadSegments": tcp("bad_syn"), "tcp.Retransmits": tcp("retransmitted"),
	"tcp.Timeouts": tcp("retransmission_timeout"), "tcp.OutOfOrder": tcp("out_of_order"), "tcp.OutOfWindow": tcp("out_of_window"),
	"tcp.Dropped": tcp("dropped"), "tcp.Challenges": tcp("challenge_ack"),

	"udp.ToHost": moved("udp", "from_guest"), "udp.ToGuest": moved("udp", "to_guest"),
	"udp.BadSource": dropped("udp", "bad_source"), "udp.NotUnicast": dropped("udp", "not_unicast"), "udp.QueueFull": dropped("udp", "queue_full"),
	"udp.WriteFailed": dropped("udp", "write_failed"), "udp.Strangers": dropped("udp", "stranger"), "udp.Truncated": dropped("udp", "too_long"),
	"udp.NoTarget": dropped("udp", "guest_unknown"), "udp.SendFailed": dropped("udp", "link_full"),
	"udp.Returned": {"udp_returned_datagrams_total", "Datagrams that reached a flow's socket and were given back to the port's listener.", nil},
	"udp.Opened":   flows("udp", "opened"), "udp.Refused": flows("udp", "refused"), "udp.Inbound": flows("udp", "accepted"),
	"udp.NoRoom": flows("udp", "no_room"), "udp.Expired": flows("udp", "expired"), "udp.Evicted": flows("udp", "evicted"),
	"udp.Revoked": flows("udp", "revoked"), "udp.Broken": flows("udp", "broken"), "udp.Errors": errorsTold("udp"),

	"icmp.ToHost": moved("icmp", "from_guest"), "icmp.ToGuest": moved("icmp", "to_guest"),
	"icmp.Bad": dropped("icmp", "no_echo_request"), "icmp.QueueFull": dropped("icmp", "queue_full"), "icmp.WriteFailed": dropped("icmp", "write_failed"),
	"icmp.Strange": dropped("icmp", "no_echo_reply"), "icmp.SendFailed": dropped("icmp", "link_full"),
	"icmp.Opened": flows("icmp", "opened"), "icmp.Refused": flows("icmp", "refused"), "icmp.NoRoom": flows("icmp", "no_room"),
	"icmp.Expired": flows("icmp", "expired"), "icmp.Broken": flows("icmp", "broken"), "icmp.Revoked": flows("icmp", "revoked"),
	"icmp.Errors": errorsTold("icmp"),

	"bypass.Opened": flows("bypass_tcp", "opened"), "bypass.Refused": flows("bypass_tcp", "refused"), "bypass.Reset": flows("bypass_tcp", "reset"),
	"bypass.Closed": flows("bypass_tcp", "closed"), "bypass.NoRoom": flows("bypass", "no_room"),
	"bypass.Spliced": bypassBytes("spliced"), "bypass.Copied": bypassBytes("copied"),
	"bypass.Datagrams": {"bypass_datagrams_total", "Datagrams that went past the link.", nil}, "bypass.Dropped": dropped("bypass_udp", "all"),
	"bypass.FlowsUDP": flows("bypass_udp", "opened"), "bypass.Evicted": flows("bypass_udp", "evicted"), "bypass.Expired": flows("bypass_udp", "expired"),
	"bypass.Revoked": flows("bypass", "revoked"),
}

const flowsHelp = "Flows that there are."

var gauges = [ipc.NumGauges]name{
	ipc.GaugeTCP:       {"flows", flowsHelp, label("protocol", "tcp")},
	ipc.GaugeUDP:       {"flows", flowsHelp, label("protocol", "udp")},
	ipc.GaugeEcho:      {"flows", flowsHelp, label("protocol", "icmp")},
	ipc.GaugeBypassTCP: {"flows", flowsHelp, label("protocol", "bypass_tcp")},
	ipc.GaugeBypassUDP: {"flows", flowsHelp, label("protocol", "bypass_udp")},
}

var histograms = [ipc.NumHistograms]name{
	ipc.HistogramTurn:   {"turn_seconds", "How long the worker's turns took, without waiting: what one flow may have others wait.", nil},
	ipc.HistogramAnswer: {"socket_request_seconds", "From the worker's request for a socket to the broker's answer.", nil},
}

// named gives all figures of the worker their names.
func named(all *[ipc.NumFigures]uint64) (r api.CountersReply) {
	add := func(n name, v uint64) {
		r.Counters = append(r.Counters, api.Counter{Name: n.name, Help: n.help, Labels: n.labels, Value: float64(v)})
	}
	for k, field := range ipc.Counters {
		add(counters[field], all[k])
	}
	for k, n := range gauges {
		add(n, all[ipc.FirstGauge+k])
	}
	bounds := make([]float64, ipc.Buckets-1)
	for k := range bounds {
		bounds[k] = seconds(uint64(ipc.BucketBound(k)))
	}
	for k, n := range histograms {
		of := all[ipc.FirstHistogram+k*ipc.HistogramSize:]
		r.Histograms = append(r.Histograms, api.Histogram{
			Name: n.name, Help: n.help, Bounds: bounds, Counts: slices.Clone(of[:ipc.Buckets]), Sum: seconds(of[ipc.Buckets]),
		})
	}
	return r
}

// kinds are what budgets are for, as a label.
var kinds = [budget.Kinds]string{budget.TCP: "tcp_connecting", budget.UDP: "udp", budget.Reply: "udp_reply", budget.Echo: "icmp", budget.Upstream: "names", budget.Conn: "flows"}

var reasons = [budget.Reasons]string{budget.TooMany: "too_many", budget.TooFast: "too_fast", budget.HostShort: "host_short", budget.ManyFlows: "many_flows", budget.Paced: "paced"}

// own are the figures that the broker has itself.
func (c *Collector) own(up bool) (all []api.Counter) {
	add := func(name, help string, labels map[string]string, v float64) {
		all = append(all, api.Counter{Name: name, Help: help, Labels: labels, Value: v})
	}
	answers := 0.0
	if up {
		answers = 1
	}
	add("worker_up", "The worker answers; where it does not, what it has counted is as last known.", nil, answers)
	add("worker_restarts_total", "Workers that were replaced. What each had counted since it was asked last is in no figure.", nil, float64(c.ended))
	refused, _ := c.broker.Refused()
	add("egress_refused_total", "Sockets that the egress rules have refused.", nil, float64(refused))
	for k, u := range c.broker.Usage() {
		if budget.Kind(k) == budget.Upstream && u.Opened+u.Refused == 0 {
			continue // nothing is resolved for this guest
		}
		if budget.Kind(k) == budget.Conn && u.Limit == budget.Unlimited {
			continue // they are not counted
		}
		kind := label("kind", kinds[k])
		add("sockets_opened_total", "Sockets that were opened for the guest; of TCP, all and not only those under way.", kind, float64(u.Opened))
		add("sockets", "Sockets of the guest's as the budget counts them; of TCP, those under way.", kind, float64(max(u.Held, 0)))
		add("sockets_most", "Most of them at a time.", kind, float64(u.Most))
		if u.Limit > 0 { // otherwise there is none
			add("sockets_limit", "How many of them there may be at a time.", kind, float64(u.Limit))
		}
		for r, why := range reasons {
			if why != "" {
				add("sockets_refused_total", "Requests for sockets that were over budget.", labels("kind", kinds[k], "reason", why), float64(u.By[r]))
			}
		}
		if budget.Kind(k) == budget.TCP {
			add("sockets_ended_total", "Connections under way that made room for others.", kind, float64(u.Ended))
		}
	}
	return all
}
