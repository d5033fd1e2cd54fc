// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"fmt"
	"math"
	"time"
)

// Bytes is a number of bytes in at most four digits and its unit: "999 B", "1.2 MB".
func Bytes(n float64) string {
	return scale(n, []string{"B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB"}, " ")
}

// Rate is a rate of bytes per second, as bits per second: "12.3 Mbit/s".
func Rate(bytes float64) string {
	return scale(8*bytes, []string{"bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s", "Pbit/s"}, " ")
}

// Short is Rate for a column: "12.3M".
func Short(bytes float64) string {
	return scale(8*bytes, []string{"", "k", "M", "G", "T", "P"}, "")
}

// Count is a number of things: "999", "12.3k".
func Count(n float64) string {
	return scale(n, []string{"", "k", "M", "G", "T", "P", "E"}, "")
}

func scale(n float64, units []string, gap string) string {
	if !(n > 0) || math.IsInf(n, 0) {
		n = 0
	}
	i := 0
	for n >= 999.5 && i < len(units)-1 {
		n, i = n/1000, i+1
	}
	if gap != "" && units[i] == "" {
		gap = ""
	}
	if i == 0 || n >= 99.95 {
		return fmt.Sprintf("%.0f%s%s", n, gap, units[i])
	}
	return fmt.Sprintf("%.1f%s%s", n, gap, units[i])
}

// Span is a time that has passed, in its two largest units: "12s", "3m04s", "5d06h".
func Span(seconds float64) string {
	if !(seconds > 0) {
		return "0s"
	}
	s := uint64(min(seconds, math.MaxInt32))
	switch {
	case seconds < 10:
		return fmt.Sprintf("%.1fs", seconds)
	case s < 60:
		return fmt.Sprintf("%ds", s)
	case s < 3600:
		return fmt.Sprintf("%dm%02ds", s/60, s%60)
	case s < 86400:
		return fmt.Sprintf("%dh%02dm", s/3600, s/60%60)
	}
	return fmt.Sprintf("%dd%02dh", s/86400, s/3600%24)
}

// RTT is a round trip: "350us", "12.3ms", "1.2s". Zero is not known.
func RTT(seconds float64) string {
	d := time.Duration(seconds * float64(time.Second))
	switch {
	case d <= 0:
		return "-"
	case d < time.Millisecond:
		return fmt.Sprintf("%dus", d.Microseconds())
	case d < time.Second:
		return fmt.Sprintf("%.1fms", d.Seconds()*1e3)
	}
	return fmt.Sprintf("%.1fs", d.Seconds())
}
