// SPDX-License-Identifier: Apache-2.0

//go:build !s390x

package fork

// isS390x: clone(2) takes its first two arguments in the other order there.
const isS390x = false
