// SPDX-License-Identifier: Apache-2.0

package ipc

import "math/bits"

// Figures have numbers: first come counters, which only grow, then gauges, then
// histograms. What each is called, and what it is good for, is the broker's to say
// (broker/figures).

// Counters are the fields of the worker's Stats, in the order of their numbers: the
// part of the worker, and the name in its code. A test of the lane compares them.
var Counters = [...]string{
	"lane.Frames", "lane.BadFrames", "lane.BadChecksums", "lane.Ignored", "lane.Sent", "lane.SendDropped",

	"link.Received", "link.ReceivedBytes", "link.Malformed", "link.Sent", "link.SentBytes", "link.Dropped", "link.Refused",

	"fragments.Completed", "fragments.Overlapped", "fragments.TimedOut", "fragments.Evicted",

	"tcp.Opened", "tcp.Accepted", "tcp.Refused", "tcp.Reset", "tcp.NoFlow", "tcp.NoMemory", "tcp.BadSegments",
	"tcp.Retransmits", "tcp.Timeouts", "tcp.OutOfOrder", "tcp.OutOfWindow", "tcp.Dropped", "tcp.Challenges", "tcp.Evicted", "tcp.Revoked",

	"udp.ToHost", "udp.ToGuest", "udp.BadSource", "udp.NotUnicast", "udp.QueueFull", "udp.WriteFailed", "udp.Strangers",
	"udp.Returned", "udp.Truncated", "udp.NoTarget", "udp.SendFailed", "udp.Opened", "udp.Refused", "udp.Inbound",
	"udp.NoRoom", "udp.Expired", "udp.Evicted", "udp.Revoked", "udp.Broken", "udp.Errors",

	"icmp.ToHost", "icmp.ToGuest", "icmp.Bad", "icmp.QueueFull", "icmp.WriteFailed", "icmp.Strange", "icmp.SendFailed",
	"icmp.Opened", "icmp.Refused", "icmp.NoRoom", "icmp.Expired", "icmp.Broken", "icmp.Revoked", "icmp.Errors",

	"bypass.Opened", "bypass.Refused", "bypass.Reset", "bypass.Closed", "bypass.NoRoom", "bypass.Spliced", "bypass.Copied",
	"bypass.Datagrams", "bypass.Dropped", "bypass.FlowsUDP", "bypass.Evicted", "bypass.Expired", "bypass.Revoked",
}

// Gauges: how many flows there are.
const (
	GaugeTCP = iota
	GaugeUDP
	GaugeEcho
	GaugeBypassTCP
	GaugeBypassUDP
	NumGauges
)

// Histograms: how often something took how long.
const (
	HistogramTurn   = iota // a turn of the lane, without the wait for events
	HistogramAnswer        // from a request for a socket to the broker's answer
	NumHistograms
)

// Buckets is how many a histogram has. The first is up to 1,024 ns, each further one
// up to twice as much, the last without end. Its sum, in nanoseconds, follows them.
const Buckets = 24

// HistogramSize is how many figures a histogram is.
const HistogramSize = Buckets + 1

// Numbers of figures.
const (
	FirstGauge     = len(Counters)
	FirstHistogram = FirstGauge + NumGauges
	NumFigures     = FirstHistogram + NumHistograms*HistogramSize
)

// Bucket is the place of a time in nanoseconds.
func Bucket(ns int64) int {
	if ns <= 0 {
		return 0
	}
	return min(bits.Len64(uint64(ns-1)>>10), Buckets-1)
}

// BucketBound is the upper bound of a bucket but the last, in nanoseconds.
func BucketBound(k int) int64 { return 1024 << k }
