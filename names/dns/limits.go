// SPDX-License-Identifier: Apache-2.0

package dns

const (
	ms     = int64(1_000_000)
	second = 1000 * ms
	minute = 60 * second
)

// What one guest may use up: less than four megabytes (TestMemoryBounded), and what resolvers
// may have sent of answers by TCP, MaxUnderWay times MaxMessage at most.
const (
	// MaxUnderWay is how many different questions may be unanswered at a time.
	MaxUnderWay = 256
	// MaxWaiting is how many clients' questions may wait for these.
	MaxWaiting = 1024
	// MaxPerClient is how many of them may be one client's: a socket of UDP, or a
	// connection.
	MaxPerClient = 32
	// MaxUDP and MaxTCP are how many clients there may be. Who has been silent for
	// longest goes first. Of UDP they are more than the worker has flows of, on
	// hosts with as many ports as usual: nothing says that a flow has ended, and where a
	// guest has one still, what it asks next would be refused.
	MaxUDP = 8192
	MaxTCP = 64

	// MaxQuestion and MaxMessage are the most that a message of the guest's, and
	// of a resolver's, may have, in bytes: 1,000 addresses of either family.
	MaxQuestion = 4096
	MaxMessage  = 32 << 10
	// MaxAddresses is how many addresses of an answer the guest is told of.
	MaxAddresses = 64
	// MaxAliases is how long a chain of CNAME records may be.
	MaxAliases = 8

	// MaxResolvers is how many of them are asked.
	MaxResolvers = 8

	maxCNAMEs   = 32  // in one answer, whatever they belong to
	maxRecords  = 128 // told, of types without addresses
	maxParams   = 32  // of one HTTPS or SVCB record
	maxEntries  = 1024
	maxCached   = 1 << 20 // bytes
	maxGiven    = 4096    // addresses that PTR questions are answered for
	maxReported = 50      // names told to the broker in a second, refused ones
)

// Sizes of messages over UDP, in bytes: what a client takes that does not say
// (RFC 1035 section 4.2.1), and the most that we send and ask for, which no path
// fragments (RFC 9715 section 3).
const (
	plainSize = 512
	ednsSize  = 1232
)

// Lives of answers, in seconds.
const (
	minTTL      = 5    // what has a shorter one would be asked for without end
	maxTTL      = 3600 // how long a rule by name lasts behind a name that has changed
	maxNegative = 300  // RFC 2308 section 5 recommends one to three hours at most
	failureTTL  = 2    // RFC 9520 section 3.2: at least one second
	anyTTL      = 3600 // RFC 8482 section 4.2
	givenMore   = 60   // how much longer PTR questions are answered, as the broker keeps addresses
)

// Times, in nanoseconds.
const (
	udpWait    = 1 * second   // for one answer; then the next resolver is asked
	tcpWait    = 2 * second   // for a connection and its answer
	wholeWait  = 4500 * ms    // for all of it: glibc and Go ask again after five seconds
	grantWait  = 3 * second   // for the broker
	udpIdle    = 130 * second // longer than the worker keeps a flow that has had answers
	tcpIdle    = 10 * second  // RFC 7766 section 6.2.3: of the order of seconds
	readyLife  = 60 * second  // of a socket that was opened ahead: routes change
	reuseLife  = udpWait      // of a socket from its first question on: as long as one may wait
	plainLife  = 15 * minute  // how long a resolver is asked without EDNS, or without regard to case
	maxPenalty = 64 * second  // how long a resolver that hangs is asked last
)

const (
	ahead       = 8 // sockets at most that are kept ready for a resolver that was asked of late
	maxAsked    = 8 // questions by one socket, one after the other
	maxAttempts = 8 // messages sent upstream for one question
	maxLies     = 8 // answers to something else on one socket, before another way is taken
)
