package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	yamlBlock  = regexp.MustCompile("(?s)```yaml\n(.*?)```")
	secretFile = regexp.MustCompile(`file:([a-z-]+)`)
)

// TestDocs checks that the examples of configuration in docs load.
func TestDocs(t *testing.T) {
	files, err := filepath.Glob("../../docs/providers/*.md")
	if err != nil || len(files) < 6 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, file := range append(files, "../../docs/access.md", "../../docs/audit.md", "../../docs/agents.md", "../../docs/configuration.md", "../../README.md") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var configs []string
			for _, m := range yamlBlock.FindAllStringSubmatch(string(text), -1) {
				block := m[1]
				if strings.HasPrefix(block, " ") && strings.HasSuffix(file, "workloads.md") { // goes on with the list
					configs[len(configs)-1] += block
					continue
				}
				if !strings.HasPrefix(block, " ") {
					configs = append(configs, block)
				}
			}
			if len(configs) == 0 {
				t.Fatal("there is no example")
			}
			for _, config := range configs {
				dir := t.TempDir()
				for _, name := range secretFile.FindAllStringSubmatch(config, -1) {
					writeFile(t, filepath.Join(dir, name[1]), "whsec_c2VjcmV0\n")
				}
				path := filepath.Join(dir, "broker.yaml")
				writeFile(t, path, config)
				if _, err := readBrokerConfig(path); err != nil {
					t.Errorf("%v\n%s", err, config)
				}
			}
		})
	}
}
