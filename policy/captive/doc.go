// SPDX-License-Identifier: Apache-2.0

// Package captive is what code that took over a process might try, for test
// builds. Programs built with the captive tag go through their real lock-down
// and then try one thing after the other. Without the tag the package is empty.
package captive
