// SPDX-License-Identifier: Apache-2.0

package policy

import _ "embed"

// callNames holds "number name" lines, as policy/generate wrote them.
//
//go:embed filters/names_s390x.txt
var callNames string
