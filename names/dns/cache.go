// SPDX-License-Identifier: Apache-2.0

package dns

import "container/list"

// cache keeps answers, bounded in number and bytes. What was used least lately goes
// first.
type cache struct {
	entries map[key]*list.Element
	order   list.List // of *cached, the latest in front
	bytes   int
}

type cached struct {
	key
	*answer
	size int
}

func (c *cache) init() { c.entries = make(map[key]*list.Element) }

// find returns an answer that has not expired.
func (c *cache) find(k key, now int64) *answer {
	at := c.entries[k]
	if at == nil {
		return nil
	}
	if found := at.Value.(*cached); found.expires > now {
		c.order.MoveToFront(at)
		return found.answer
	}
	c.remove(at)
	return nil
}

// add keeps an answer, in place of an older one.
func (c *cache) add(k key, a *answer, now int64) {
	if at := c.entries[k]; at != nil {
		c.remove(at)
	}
	if a.expires <= now {
		return
	}
	n := &cached{k, a, a.size() + 2*len(k.name)}
	c.entries[k] = c.order.PushFront(n)
	for c.bytes += n.size; c.bytes > maxCached || len(c.entries) > maxEntries; {
		c.remove(c.order.Back())
	}
}

func (c *cache) remove(at *list.Element) {
	n := c.order.Remove(at).(*cached)
	c.bytes -= n.size
	delete(c.entries, n.key)
}
