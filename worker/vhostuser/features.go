// SPDX-License-Identifier: Apache-2.0

package vhostuser

// Features of virtio and of its network devices, virtio 1.3 sections 5.1.3 and 6;
// and two that vhost-user adds.
const (
	FeatureCSum          = 1 << 0 // the guest leaves checksums to us
	FeatureGuestCSum     = 1 << 1 // the guest takes frames without checksums
	FeatureMTU           = 1 << 3 // it is told an MTU
	FeatureMAC           = 1 << 5 // it is told its address
	FeatureGuestTSO4     = 1 << 7 // super-frames to the guest
	FeatureGuestTSO6     = 1 << 8
	FeatureGuestECN      = 1 << 9
	FeatureHostTSO4      = 1 << 11 // super-frames from the guest
	FeatureHostTSO6      = 1 << 12
	FeatureHostECN       = 1 << 13
	FeatureMrgRxBuf      = 1 << 15 // a frame may fill several buffers
	FeatureStatus        = 1 << 16 // it is told that the link is up
	FeatureCtrlVQ        = 1 << 17 // a control queue, which the front end serves
	FeatureCtrlRx        = 1 << 18
	FeatureGuestAnnounce = 1 << 21
	FeatureMQ            = 1 << 22 // several pairs of queues
	FeatureCtrlMAC       = 1 << 23
	FeatureLogAll        = 1 << 26 // of vhost: pages that are written to are marked
	FeatureIndirectDesc  = 1 << 28
	FeatureEventIdx      = 1 << 29
	FeatureProtocol      = 1 << 30 // of vhost-user: there are protocol features
	FeatureVersion1      = 1 << 32
	FeatureInOrder       = 1 << 35
	FeatureGuestUSO4     = 1 << 54
	FeatureGuestUSO6     = 1 << 55
	FeatureHostUSO       = 1 << 56

	// Features are those that are offered where nothing speaks against them. VIRTIO_F_RING_RESET
	// is not: QEMU passes it on to the guest and, but for taps, tells nobody of a ring that was
	// reset. We would go on with that, and the guest with another.
	Features = FeatureCSum | FeatureGuestCSum | FeatureMTU | FeatureMAC | FeatureGuestTSO4 | FeatureGuestTSO6 | FeatureGuestECN |
		FeatureHostTSO4 | FeatureHostTSO6 | FeatureHostECN | FeatureMrgRxBuf | FeatureStatus |
		FeatureCtrlVQ | FeatureCtrlRx | FeatureGuestAnnounce | FeatureMQ | FeatureCtrlMAC | FeatureLogAll |
		FeatureIndirectDesc | FeatureEventIdx | FeatureProtocol | FeatureVersion1 | FeatureInOrder |
		FeatureGuestUSO4 | FeatureGuestUSO6 | FeatureHostUSO
)

// Features of the protocol.
const (
	protoMQ          = 1 << 0
	protoLogShm      = 1 << 1
	protoRARP        = 1 << 2
	protoReplyAck    = 1 << 3
	protoMTU         = 1 << 4
	protoConfig      = 1 << 9
	protoInflight    = 1 << 12
	protoResetDevice = 1 << 13
	protoMemSlots    = 1 << 15
	protoStatus      = 1 << 16
)
