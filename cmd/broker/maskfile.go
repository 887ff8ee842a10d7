package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"example.com/broker/broker/policy"
	"example.com/broker/codec"
	"example.com/broker/codec/detect"
)

// detectorFile is a detector of one's own.
type detectorFile struct {
	Name     string   `yaml:"name"`
	Regex    string   `yaml:"regex"`
	Keywords []string `yaml:"keywords"`
	Validate string   `yaml:"validate"` // luhn, mod97 or entropy
}

// ownDetectors compiles the detectors of the configuration.
func (c *brokerConfig) ownDetectors() (map[string]detect.Detector, error) {
	own := map[string]detect.Detector{}
	for i, d := range c.Detectors {
		at := fmt.Sprintf("detectors[%d]", i)
		made, err := detect.Define(detect.Custom(d))
		if err != nil {
			return nil, c.errorAt(at, err)
		}
		if _, twice := own[d.Name]; twice || d.Name == codec.FieldDetector {
			return nil, c.errorAt(at, fmt.Errorf("name %q is taken", d.Name))
		}
		own[d.Name] = made
	}
	return own, nil
}

// masking reads what policy[i] masks.
func (c *brokerConfig) masking(i int, r ruleFile, own map[string]detect.Detector) (m policy.Masking, err error) {
	at := func(key string) string { return fmt.Sprintf("policy[%d].%s", i, key) }
	var detectors []detect.Detector
	for j, name := range r.Mask {
		d, ok := own[name]
		if !ok {
			d, ok = detect.ByName(name)
		}
		if !ok {
			names := detect.Names()
			for n := range own {
				names = append(names, n)
			}
			slices.Sort(names)
			return m, c.errorAt(at(fmt.Sprintf("mask[%d]", j)), fmt.Errorf("no detector %q; there are %s", name, strings.Join(names, ", ")))
		}
		detectors = append(detectors, d)
	}
	fields, err := codec.NewFields(r.MaskFields)
	if err != nil {
		return m, c.errorAt(at("mask_fields"), err)
	}
	switch r.MaskRequest {
	case nil, false:
	case true:
		m.Requests = policy.RequestsMask
	case "deny":
		m.Requests = policy.RequestsDeny
	default:
		return m, c.errorAt(at("mask_requests"), fmt.Errorf("%v: expected true, false or deny", r.MaskRequest))
	}
	if len(detectors) == 0 && fields == nil {
		if m.Requests != policy.RequestsPass {
			return m, c.errorAt(at("mask_requests"), fmt.Errorf("there is nothing in mask or mask_fields to look for"))
		}
		return m, nil
	}
	detect.New(detectors...) // reads the rules now, not in somebody's first answer
	m.New = func() *codec.Masker { return codec.NewMasker(detect.New(detectors...), fields) }
	return m, nil
}

// maskAll returns what masks everything that a detector finds, of those that there
// are and those of the files, and what their rules name in mask_fields.
func maskAll(files ...*brokerConfig) (func() *codec.Masker, error) {
	var detectors []detect.Detector
	var names []string
	for _, name := range detect.Names() {
		d, _ := detect.ByName(name)
		detectors = append(detectors, d)
	}
	for _, c := range files {
		own, err := c.ownDetectors()
		if err != nil {
			return nil, err
		}
		for _, name := range slices.Sorted(maps.Keys(own)) {
			detectors = append(detectors, own[name])
		}
		for _, r := range c.Policy {
			names = append(names, r.MaskFields...)
		}
	}
	fields, err := codec.NewFields(names)
	if err != nil {
		return nil, err
	}
	return func() *codec.Masker { return codec.NewMasker(detect.New(detectors...), fields) }, nil
}
