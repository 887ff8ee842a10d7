package main

import (
	"regexp"
	"strconv"
	"time"
)

// timeSpan reads the values of --since and --until. Empty ones are zero times.
func timeSpan(since, until string) (from, to time.Time, err error) {
	now := time.Now()
	if from, err = pointInTime("since", since, now); err != nil {
		return from, to, err
	}
	if to, err = pointInTime("until", until, now); err != nil {
		return from, to, err
	}
	if !to.IsZero() && !from.Before(to) {
		err = usagef("--since %s is not before --until %s", since, until)
	}
	return from, to, err
}

var ago = regexp.MustCompile(`^([0-9]{1,5})d$`)

// pointInTime reads the value of a flag: how long before now, or a date.
func pointInTime(flag, text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if m := ago.FindStringSubmatch(text); m != nil {
		days, _ := strconv.Atoi(m[1])
		return now.AddDate(0, 0, -days), nil
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t, nil
	}
	if t, err := time.ParseInLocation(time.DateOnly, text, time.Local); err == nil {
		return t, nil
	}
	return time.Time{}, usagef("--%s %q: must be like 30d, 12h, 2026-11-01 or 2026-11-01T12:00:00Z", flag, text)
}
