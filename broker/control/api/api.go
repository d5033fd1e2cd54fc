// SPDX-License-Identifier: Apache-2.0

// Package api is what an instance and its clients say to each other on the status
// socket and on that of --control.
//
// A client connects, sends one Request as one line of JSON, and reads until the end:
// one Reply or, for requests that say so, several, each one line of JSON. It leaves its
// own side open: one that has closed it has gone, which ends what lasts. Both sides
// bound what they read, and ignore members that they do not know, so that client and
// instance may be of different versions.
package api

// Version is that of the protocol. It changes when a member changes its meaning.
const Version = 1

// Bounds on what is read, in bytes.
const (
	MaxRequest = 64 << 10
	MaxLoad    = 1 << 20 // MaxRequest on the socket of --control, which takes rules
	MaxReply   = 64 << 20
)

// Prefix is how the names of the status sockets begin. They are abstract, unix(7):
// they belong to a network namespace and not to a folder, so that none is left over
// and a guest in a namespace of its own finds none. What follows is the process
// number and, where that is taken, "-" and a number.
const Prefix = "aldente/"

// Commands, as Request.Command has them. Those that change something are answered
// on the socket of --control only.
const (
	Status   = "status"    // → Reply.Status
	Flows    = "flows"     // → Reply.Flows, as often as there are more
	Counters = "counters"  // → Reply.Counters
	Rules    = "rules"     // → Reply.Rules
	Why      = "why"       // Request.Target → Reply.Why
	Forwards = "forwards"  // → Reply.Forwards
	Capture  = "capture"   // Request.Capture → Reply, with the pipe to read pcapng from: until the client writes no more
	Forward  = "forward"   // Request.Forward: changes port rules
	Load     = "load"      // Request.Load: changes the egress rules → Reply.Load
	LogLevel = "log-level" // Request.Level: changes what the log shows
)

// Request is what a client asks for.
type Request struct {
	Version int          `json:"version"`           // the constant of that name
	Command string       `json:"command"`           // one of the constants
	Target  *Target      `json:"target,omitempty"`  // of why
	Capture *CaptureSpec `json:"capture,omitempty"` // of capture
	Forward *ForwardSpec `json:"forward,omitempty"` // of forward
	Load    *LoadSpec    `json:"load,omitempty"`    // of load
	Level   string       `json:"level,omitempty"`   // error, warning, info, debug or trace
}

// Reply is an answer or a part of one. Where Error is set, there is nothing else.
type Reply struct {
	Error    string         `json:"error,omitempty"`    // one line, for people
	Problems []string       `json:"problems,omitempty"` // with Error: one line each, what is wrong in which place
	Status   *StatusReply   `json:"status,omitempty"`   // of status
	Flows    []Flow         `json:"flows,omitempty"`    // of flows, a part of them
	Counters *CountersReply `json:"counters,omitempty"` // of counters
	Rules    []Rule         `json:"rules,omitempty"`    // of rules
	Why      []Step         `json:"why,omitempty"`      // of why, in order
	Forwards []PortRule     `json:"forwards,omitempty"` // of forwards
	Load     *LoadReply     `json:"load,omitempty"`     // of load
}

// StatusReply says what an instance is and how it fares.
type StatusReply struct {
	Version     string   `json:"version"`                // of the program
	Personality string   `json:"personality"`            // passt, pasta or aldente
	PID         int      `json:"pid"`                    // broker's
	WorkerPID   int      `json:"worker_pid"`             // zero: none at the moment
	User        int      `json:"user"`                   // broker's
	Started     string   `json:"started"`                // RFC 3339
	Link        string   `json:"link"`                   // kind of link to the guest
	Connected   bool     `json:"connected"`              // the guest is there
	Restarts    int      `json:"restarts"`               // of the worker
	LastDeath   string   `json:"last_death,omitempty"`   // when and how a worker ended that was not to
	Guest       string   `json:"guest,omitempty"`        // namespace, command or socket
	Interface   string   `json:"interface,omitempty"`    // the guest's, where the instance makes it
	MTU         int      `json:"mtu"`                    // bytes, zero: the guest is told none
	Addresses   []string `json:"addresses"`              // given to the guest, with prefix length
	Gateways    []string `json:"gateways"`               // the guest's default routers
	Resolvers   []string `json:"resolvers"`              // as the guest is told
	Search      []string `json:"search,omitempty"`       // domains, as the guest is told
	Egress      string   `json:"egress"`                 // in one line
	LogLevel    string   `json:"log_level"`              // the least that the log shows
	Control     bool     `json:"control"`                // this socket may change things
	ControlPath string   `json:"control_path,omitempty"` // where things may be changed, absolute
	Limits      []Limit  `json:"limits,omitempty"`       // budgets of what the guest may use up

	Network *NetworkReply `json:"network,omitempty"` // the host's, as the guest's follows it; absent: it does not
	Names   *NamesReply   `json:"names,omitempty"`   // aldente-names; absent: no egress rule is by name, nor is a proxy asked
	Proxy   *ProxyReply   `json:"proxy,omitempty"`   // of --via; absent: none
}

// NetworkReply says what the guest's network follows.
type NetworkReply struct {
	Connected  bool   `json:"connected"`             // the host has a network outside
	Template   string `json:"template,omitempty"`    // interfaces of the host that it is like
	Changes    uint64 `json:"changes"`               // that concerned the guest, since the start
	LastChange string `json:"last_change,omitempty"` // RFC 3339; absent: there was none
}

// NamesReply says how aldente-names fares, which answers the guest's questions for names.
type NamesReply struct {
	PID       int      `json:"pid"`                  // zero: none at the moment
	Restarts  int      `json:"restarts"`             // how often it was replaced
	LastDeath string   `json:"last_death,omitempty"` // when and how one ended that was not to
	Resolvers []string `json:"resolvers"`            // that it asks, in order
}

// ProxyReply says how connections by the proxy fare.
type ProxyReply struct {
	URL       string   `json:"url"`              // with the user, without the password
	Address   string   `json:"address"`          // where it is, as was found at the start, and port
	Names     bool     `json:"names,omitempty"`  // it is told names
	Except    []string `json:"except,omitempty"` // networks to which nothing goes by it
	Waiting   uint64   `json:"waiting"`          // for its answer, at the moment
	Connected uint64   `json:"connected"`        // since the start, as the next two
	Refused   uint64   `json:"refused"`          // it has said no
	Failed    uint64   `json:"failed"`           // it was away, silent or made no sense
}

// Limit is one budget of the instance.
type Limit struct {
	Name    string `json:"name"`    // of what
	Used    uint64 `json:"used"`    // at the moment
	Max     uint64 `json:"max"`     // zero: unlimited
	Refused uint64 `json:"refused"` // requests, since the start
}

// Flow is one flow between the guest and somebody outside.
type Flow struct {
	Protocol  string  `json:"protocol"`  // tcp, udp or icmp
	Direction string  `json:"direction"` // out, in; bypass-out, bypass-in past the link
	State     string  `json:"state"`     // TCP: RFC 9293's names; others: open, opening, unanswered or refused
	Guest     string  `json:"guest"`     // the guest's address and port; empty where it is not known any more
	Remote    string  `json:"remote"`    // the other side's, as the guest sees it
	Age       float64 `json:"age"`       // seconds
	Idle      float64 `json:"idle"`      // seconds since something moved
	RTT       float64 `json:"rtt"`       // seconds, outside; zero: not known
	Sent      uint64  `json:"sent"`      // bytes from the guest
	Received  uint64  `json:"received"`  // bytes to the guest
	// Packets are datagrams, or segments as they crossed the link (super-segments
	// count once).
	SentPackets     uint64 `json:"sent_packets"`
	ReceivedPackets uint64 `json:"received_packets"` // to the guest
	Retransmits     uint64 `json:"retransmits"`      // to the guest, and by the kernel outside
	Queued          uint64 `json:"queued"`           // bytes from the guest that wait here
	Rule            string `json:"rule,omitempty"`   // that allows it as rules are now, or refuses it; empty: none, or not known any more
	Name            string `json:"name,omitempty"`   // of the destination, if it is known
}

// CountersReply holds all that is counted, since the start of the instance.
type CountersReply struct {
	Counters   []Counter   `json:"counters"`   // all, in a fixed order
	Histograms []Histogram `json:"histograms"` // likewise
}

// Counter is one figure. Names are those of OpenMetrics without the prefix aldente_:
// they end in _total where it only grows.
type Counter struct {
	Name   string            `json:"name"`             // without the prefix
	Help   string            `json:"help"`             // one line
	Labels map[string]string `json:"labels,omitempty"` // that tell counters of one name apart
	Value  float64           `json:"value"`            // at the moment
}

// Histogram is how often something took how long.
type Histogram struct {
	Name   string    `json:"name"`   // without the prefix
	Help   string    `json:"help"`   // one line
	Bounds []float64 `json:"bounds"` // upper ones, seconds, growing
	Counts []uint64  `json:"counts"` // one more than bounds: not cumulated
	Sum    float64   `json:"sum"`    // seconds
}

// Rule is one rule of where the guest may connect, in the order in which they are
// asked.
type Rule struct {
	Number int    `json:"number"`         // from 1
	Text   string `json:"text"`           // as it would be written as an option
	Source string `json:"source"`         // option, file, default or built in
	Note   string `json:"note,omitempty"` // what for, where the text does not tell
	Hits   uint64 `json:"hits"`           // decisions, since the start
}

// Target is a destination as the guest would use it.
type Target struct {
	Protocol string `json:"protocol"`       // tcp, udp or icmp
	Address  string `json:"address"`        // without a port for icmp; empty if there is a name
	Port     uint16 `json:"port,omitempty"` // of tcp and udp
	Name     string `json:"name,omitempty"` // in place of an address; no steps are the answer where no rule is by name
}

// Step is one step from the guest's packet to the decision.
type Step struct {
	What   string `json:"what"`   // what is looked at, a word or two
	Result string `json:"result"` // what comes out of it
	Final  bool   `json:"final"`  // it is decided here
	Allow  bool   `json:"allow"`  // how, if it is
}

// CaptureSpec says which frames a client wants to see.
type CaptureSpec struct {
	Protocol string `json:"protocol,omitempty"` // tcp, udp, icmp, arp; empty: all
	Address  string `json:"address,omitempty"`  // either side's
	Port     uint16 `json:"port,omitempty"`     // either side's
	Snap     uint32 `json:"snap,omitempty"`     // bytes of each frame, zero: all
	Drops    bool   `json:"drops,omitempty"`    // only what was dropped or refused
}

// ForwardSpec changes port rules, all of it or nothing.
type ForwardSpec struct {
	Delete bool     `json:"delete,omitempty"` // instead of adding
	Specs  []string `json:"specs"`            // option and specification, as "-t 8080:80"
}

// LoadSpec is the text of a rules file, in the place of those of --rules. All of it is
// put into force or nothing.
type LoadSpec struct {
	Name string `json:"name"`           // of the file, for messages
	Text string `json:"text"`           // as aldente-rules(5) has it
	Keep bool   `json:"keep,omitempty"` // flows that the rules refuse go on until they end
	End  bool   `json:"end,omitempty"`  // they do not, though the instance was started with --keep-flows
}

// LoadReply says what came of it.
type LoadReply struct {
	Rules    int      `json:"rules"`              // that are in force of options and files, with those of the text
	Ended    int      `json:"ended"`              // flows that end, since the rules refuse them
	Warnings []string `json:"warnings,omitempty"` // one line each
}

// PortRule is one port rule in force.
type PortRule struct {
	Direction string `json:"direction"`         // in or out
	Protocol  string `json:"protocol"`          // tcp or udp
	Listen    string `json:"listen"`            // address and ports, as the tables of pesto
	Target    string `json:"target"`            // the same, where it leads
	Flags     string `json:"flags,omitempty"`   // best effort, auto-scan
	Option    string `json:"option"`            // as Specs of ForwardSpec have it
	Ports     int    `json:"ports"`             // in its range
	Listens   int    `json:"listens"`           // of them, on which something is waited for
	Listening bool   `json:"listening"`         // on all; with auto-scan on those that are bound
	Dropped   uint64 `json:"dropped,omitempty"` // refused there by --deny-in: connections, or packets, with those that found no room
}
