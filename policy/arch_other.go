// SPDX-License-Identifier: Apache-2.0

//go:build !amd64 && !arm64 && !ppc64le && !riscv64 && !s390x

package policy

// Without a list of system calls for the architecture there is no sandbox. A
// build for it stops here, and the compiler prints the reason: it is the name of
// what is not defined. To add one, see policy/generate.
var _ = aldente_is_for_amd64_arm64_ppc64le_riscv64_and_s390x_there_are_no_seccomp_filters_for_this_architecture_in_policy_filters
