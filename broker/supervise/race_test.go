// SPDX-License-Identifier: Apache-2.0

//go:build race

package supervise

const raceDetector = true
