// SPDX-License-Identifier: Apache-2.0

//go:build !debugfilter

package policy

import "embed"

// filters holds the programs of each list for each architecture. A forbidden
// call ends the whole process with SIGSYS, which cannot be caught.
//
//go:embed filters/agent_*.bpf filters/broker_*.bpf filters/remover_*.bpf filters/reader_*.bpf
//go:embed filters/worker-start_*.bpf filters/worker_*.bpf
//go:embed filters/names-start_*.bpf filters/names_*.bpf
//go:embed filters/worker-vhost-start_*.bpf filters/worker-vhost_*.bpf filters/broker-vhost_*.bpf
var filters embed.FS

const (
	filterSuffix = ""
	filterAction = "a forbidden call ends the process"
)

// DebugFilter says whether this build only traps forbidden calls.
const DebugFilter = false
