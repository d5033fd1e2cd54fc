// SPDX-License-Identifier: Apache-2.0

package ipc

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// Bits of Config.Flags.
const (
	FlagIPv4       = 1 << iota // translate IPv4
	FlagIPv6                   // translate IPv6
	FlagTCP                    // translate TCP
	FlagUDP                    // translate UDP
	FlagICMP                   // translate ICMP and ICMPv6 echo
	FlagDHCP                   // answer DHCP
	FlagDHCPv6                 // answer DHCPv6
	FlagNDP                    // answer neighbour solicitations
	FlagRA                     // answer and send router advertisements
	FlagPeekOff4               // SO_PEEK_OFF works on TCP over IPv4
	FlagPeekOff6               // SO_PEEK_OFF works on TCP over IPv6
	FlagAddr4Fixed             // the guest's IPv4 address was given, not learned
	FlagAddr6Fixed             // the guest's IPv6 address was given, not learned
	FlagDebug                  // log at debug level
	FlagTrace                  // log each frame's summary
	FlagLoToLo                 // bypass from the host's loopback: to the namespace's loopback, not its public address
	FlagSpliceOnly             // there is no link: all but the bypass is refused
	FlagFlowLog                // tell of flows that come by listeners, and of all that end
	FlagMulticast              // what the guest sends to groups leaves
	FlagBroadcast              // what it sends to everybody on its network leaves
	FlagConfigured             // the guest has the addresses assigned, without asking for them
	FlagNoRouter6              // no default route of IPv6 leads anywhere
)

// Limits on the lists that Config carries.
const (
	MaxDNS     = 3   // resolvers for each family
	MaxSearch  = 6   // search domains
	MaxOwn     = 64  // addresses that the guest has
	MaxDomain  = 255 // bytes of a domain name, RFC 1035 section 2.3.4
	MaxPrefix4 = 32  // bits of an IPv4 prefix length
	MaxGroups  = 16  // ports of groups that the guest may hear
	MaxFormer  = 4   // addresses of a family that the guest had before
)

// Group is a port of a group that the guest may hear.
type Group struct {
	Addr [16]byte // of the group
	Port uint16   // above zero
}

// Name is a string of bounded length, as fixed-size records hold it.
type Name struct {
	Len   uint8           // of the string, in bytes
	Bytes [MaxDomain]byte // beyond Len: zero
}

// MakeName copies s, which must not exceed MaxDomain bytes.
func MakeName(s string) (Name, error) {
	var n Name
	if len(s) > MaxDomain {
		return n, fmt.Errorf("name of %d bytes: at most %d fit", len(s), MaxDomain)
	}
	n.Len = uint8(len(s))
	copy(n.Bytes[:], s)
	return n, nil
}

func (n *Name) String() string { return string(n.Bytes[:n.Len]) }

// Config is everything the worker is told about the guest's network before
// the first frame. It is told again when the host's network has changed: what it does not
// depend on is as it was then. IPv4 addresses are IPv4-mapped IPv6 ones; an all-zero
// address means "none".
type Config struct {
	Flags uint64 // Flag*

	OurMAC   [6]byte // source address of all frames to the guest
	GuestMAC [6]byte // zero: learned from the guest's first frame
	MTU      uint16  // of the guest's link, 0: not advertised and 65520 assumed

	Addr4   [16]byte // assigned to the guest
	Prefix4 uint8    // its prefix length, 0 to 32
	Addr6   [16]byte // the same of IPv6
	Prefix6 uint8    // 0 to 128
	Our4    [16]byte // our address on the link, IPv4: the guest's gateway
	Our6    [16]byte // our address on the link, IPv6: the guest's gateway, global or link-local
	OurLL6  [16]byte // our link-local address, source of RAs

	Former4 [MaxFormer][16]byte // what Addr4 was before, the last one first
	Former6 [MaxFormer][16]byte // the same of IPv6
	Kept4   uint8               // bit N: the host still has Former4[N], and the guest may use it
	Kept6   uint8               // the same of IPv6
	Lease   uint32              // of addresses assigned by DHCP and DHCPv6, in seconds, 0: for ever
	Renew   uint32              // after which the guest is to ask again, in seconds, with Lease

	MapHostLoopback4 [16]byte // loopback sources appear to the guest as this
	MapHostLoopback6 [16]byte // the same of IPv6
	MapGuestAddr4    [16]byte // the host's own use of the guest's address appears as this
	MapGuestAddr6    [16]byte // the same of IPv6
	DNSForward4      [16]byte // answered by the broker's resolver mapping
	DNSForward6      [16]byte // the same of IPv6

	DNS4      [MaxDNS][16]byte // advertised by DHCP
	DNS6      [MaxDNS][16]byte // advertised by RA and DHCPv6
	NDNS4     uint8            // how many of DNS4 are set, up to MaxDNS
	NDNS6     uint8            // how many of DNS6 are set, up to MaxDNS
	NSearch   uint8            // how many of Search are set, up to MaxSearch
	NOwn      uint8            // how many of Own are set, up to MaxOwn
	Own       [MaxOwn][16]byte // addresses of both families that the guest has, or may give itself
	Hostname  Name             // DHCP option 12
	FQDN      Name             // DHCP option 81, DHCPv6 option 39
	Search    [MaxSearch]Name  // search domains: DHCP option 119, DHCPv6 option 24, RA
	MaxFlows  uint32           // bound on sockets held, RLIMIT_NOFILE
	MaxUDP    uint32           // flows of UDP with a port of their own that the broker grants, 0: any number
	LinkKind  uint8            // Link*
	DUIDTime  uint32           // time of the DHCPv6 server DUID-LLT, RFC 8415 section 11.2
	UDPIdle   uint32           // seconds a one-way UDP flow lives
	UDPStream uint32           // seconds a two-way UDP flow lives
	SYNRetry  uint8            // retransmissions of a SYN to the guest
	Stats     uint32           // seconds between lines of statistics, 0: none
	MaxConns  uint32           // flows at a time that the broker grants, 0: any number
	NewConns  uint32           // connections to be accepted in a second, 0: any number
	Bytes     uint64           // payload by the link in a second, each way, 0: any
	NGroups   uint8            // how many of Groups are set, up to MaxGroups
	Groups    [MaxGroups]Group // that the guest may hear
}

// Kinds of link: a TUN device in tap mode; a UNIX stream socket with a length before
// each frame; UNIX sockets of which each message is a frame; a tap that was made
// without a header for offloads; a UNIX stream socket on which a front end of vhost-user
// says where the rings and the memory of its guest are. A new one goes before the last line.
const (
	LinkTap = 1 + iota
	LinkStream
	LinkDatagram
	LinkSeqpacket
	LinkPlainTap
	LinkVhostUser
	linksEnd
)

// Encode returns the record.
func (c *Config) Encode() []byte {
	var b bytes.Buffer
	size := HeaderSize + binary.Size(c)
	head := make([]byte, HeaderSize)
	putHeader(head, KindConfig, size)
	b.Write(head)
	if err := binary.Write(&b, binary.LittleEndian, c); err != nil {
		panic(err) // only for a type that is not fixed-size, a fault of this file
	}
	return b.Bytes()
}

// Decode reads exactly one record and checks its ranges.
func (c *Config) Decode(b []byte) error {
	if err := expect(b, KindConfig, HeaderSize+binary.Size(c)); err != nil {
		return err
	}
	if _, err := binary.Decode(b[HeaderSize:], binary.LittleEndian, c); err != nil {
		return fmt.Errorf("%w: %v", ErrMalformed, err)
	}
	if !linkKind(c.LinkKind) {
		return fmt.Errorf("%w: link %d", ErrMalformed, c.LinkKind)
	}
	if c.Kept4>>MaxFormer != 0 || c.Kept6>>MaxFormer != 0 || (c.Lease == 0) != (c.Renew == 0) || c.Renew > c.Lease {
		return fmt.Errorf("%w: former addresses %#x, %#x, lease of %d, renewed after %d", ErrMalformed, c.Kept4, c.Kept6, c.Lease, c.Renew)
	}
	if c.NDNS4 > MaxDNS || c.NDNS6 > MaxDNS || c.NSearch > MaxSearch || c.NOwn > MaxOwn || c.Prefix4 > MaxPrefix4 || c.Prefix6 > 128 || c.NGroups > MaxGroups {
		return fmt.Errorf("%w: counts out of range", ErrMalformed)
	}
	return nil
}

// Link precedes the descriptor of the guest's side.
type Link struct {
	Kind     uint8    // Link*
	Reserved [3]uint8 // zero
	Offload  uint32   // LinkTap: the TUN_F_* bits in force, include/uapi/linux/if_tun.h
}

// Listener precedes a listening TCP socket or a bound UDP socket on the host.
type Listener struct {
	ID        uint32   // never zero; names the listener in Open and KindUnlisten
	Proto     uint8    // ProtoTCP or ProtoUDP
	Flags     uint8    // Listener*
	HostPort  uint16   // port it is bound to
	GuestPort uint16   // port in the guest that it stands for
	Target    [16]byte // address in the guest, zero: the guest's own
}

// Capture precedes the descriptor of the pcap file, and before that, with
// CaptureMark, that of an eventfd to which the worker adds the bytes of whole records
// that it has written. So the broker knows where the last one ends, should the
// worker die in the middle of another.
type Capture struct {
	Flags uint64 // Capture*
	Room  int64  // bytes that may be written to the file, negative: any number
}

// CaptureBuffer is how many bytes the worker gathers at most before it writes them.
const CaptureBuffer = 256 << 10

// Flags of Capture.
const (
	CaptureAppend = 1 << 0 // the file has its header, from a worker before this one
	CaptureMark   = 1 << 1 // the descriptor is the eventfd
)

// Encode returns the record.
func (c *Capture) Encode() []byte { return encodeFixed(KindCapture, c) }

// Decode reads exactly one record.
func (c *Capture) Decode(b []byte) error {
	if err := decodeFixed(b, KindCapture, c); err != nil {
		return err
	}
	if c.Flags&^(CaptureAppend|CaptureMark) != 0 {
		return fmt.Errorf("%w: capture flags %#x", ErrMalformed, c.Flags)
	}
	return nil
}

// Flags of Listener.
const (
	ListenerMayBypass = 1 << 0 // on the host: peers on its loopback take the bypass
	ListenerNamespace = 1 << 1 // in the namespace: every peer takes the bypass
)

// encodeFixed and decodeFixed serve the small records of start-up, where speed
// does not matter and one way to do it does.
func encodeFixed(k Kind, v any) []byte {
	size := HeaderSize + binary.Size(v)
	b := make([]byte, HeaderSize, size)
	putHeader(b, k, size)
	b, err := binary.Append(b, binary.LittleEndian, v)
	if err != nil {
		panic(err) // only for a type that is not fixed-size, a fault of this file
	}
	return b
}

func decodeFixed(b []byte, k Kind, v any) error {
	if err := expect(b, k, HeaderSize+binary.Size(v)); err != nil {
		return err
	}
	if _, err := binary.Decode(b[HeaderSize:], binary.LittleEndian, v); err != nil {
		return fmt.Errorf("%w: %v", ErrMalformed, err)
	}
	return nil
}

func linkKind(k uint8) bool { return k >= LinkTap && k < linksEnd }

// Encode returns the record.
func (l *Link) Encode() []byte { return encodeFixed(KindLink, l) }

// Decode reads exactly one record.
func (l *Link) Decode(b []byte) error {
	if err := decodeFixed(b, KindLink, l); err != nil {
		return err
	}
	if !linkKind(l.Kind) {
		return fmt.Errorf("%w: link %d", ErrMalformed, l.Kind)
	}
	return nil
}

// Encode returns the record, of kind KindListener, KindUnlisten or KindRetarget.
func (l *Listener) Encode(k Kind) []byte { return encodeFixed(k, l) }

// Decode reads exactly one record of the kind given.
func (l *Listener) Decode(b []byte, k Kind) error {
	if err := decodeFixed(b, k, l); err != nil {
		return err
	}
	if l.ID == 0 || (l.Proto != ProtoTCP && l.Proto != ProtoUDP) {
		return fmt.Errorf("%w: listener %d, protocol %d", ErrMalformed, l.ID, l.Proto)
	}
	return nil
}
