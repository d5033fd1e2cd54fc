// SPDX-License-Identifier: Apache-2.0

// Package stage is what the programs do to themselves that read what guests send,
// the worker and aldente-names. Only the broker can start them.
//
// Such a program runs twice, unless its process has done before exec what the first time
// is for (broker/supervise). The first time it comes straight from clone(2) and is
// in new namespaces. It empties its file system and its capabilities and replaces
// itself by a fresh image: capabilities belong to threads, and only exec leaves
// none with any. The second time it confines itself, before it has read a byte of
// anybody's but the broker's.
package stage

// Program is what differs between them.
type Program struct {
	Name        string // as ps shows it, at most 15 bytes
	Memory      uint64 // bytes that it may write to, once it is captured
	Heap        int64  // bytes of heap from which on the runtime collects whatever else it was told
	NoCollector bool   // until then it does not collect: nothing that counts allocates
}
