package main

import (
	"errors"
	"log/slog"
	"regexp"
	"runtime"

	"example.com/broker/broker/agent"
	"example.com/broker/broker/agent/credential"
	"example.com/broker/stream"
	"github.com/spf13/cobra"
)

// agentFile is agent.yaml.
type agentFile struct {
	Broker  string                `yaml:"broker"`
	Name    string                `yaml:"name"`
	Token   string                `yaml:"token"`
	Join    string                `yaml:"join"`
	CA      string                `yaml:"ca"`
	Data    string                `yaml:"data"`
	Tunnels int                   `yaml:"tunnels"`
	Servers map[string]serverFile `yaml:"servers"`
}

func agentCommand() *cobra.Command {
	var (
		config string
		log    logFlags
	)
	cmd := &cobra.Command{
		Use:   "agent --config FILE",
		Short: "run an agent beside MCP servers",
		Long: `Run an agent: it dials the broker, and nothing dials in to it. It joins once with
a token (broker token create), or on GCP with its instance's identity, keeps the certificate that it gets for it in its
data folder and renews that by itself.`,
		Example: "  broker agent --config agent.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			logger, err := log.logger()
			if err != nil {
				return err
			}
			slog.SetDefault(logger) // of credentials
			link, err := readAgentConfig(config)
			if err != nil {
				return err
			}
			link.Agent.Log, link.Log, link.Tunnel.Log = logger, logger, logger
			ballast := make([]byte, ballastSize)
			defer runtime.KeepAlive(ballast)
			return link.Run(cmd.Context())
		},
	}
	cmd.Flags().StringVarP(&config, "config", "c", "agent.yaml", "the configuration `FILE`")
	log.add(cmd)
	return cmd
}

var pinText = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

func readAgentConfig(path string) (*agent.Link, error) {
	file := agentFile{Data: "agent-data"}
	c, err := readConfig(path, &file)
	if err != nil {
		return nil, err
	}
	switch {
	case file.Broker == "":
		return nil, c.errorAt("broker", errors.New("is missing; say host:port"))
	case file.Name == "":
		return nil, c.errorAt("name", errors.New("is missing; it is the name that the token was created for"))
	case !pinText.MatchString(file.CA):
		return nil, c.errorAt("ca", errors.New("must be sha256: and 64 hex digits, as broker token create prints it"))
	case len(file.Servers) == 0:
		return nil, c.errorAt("servers", errors.New("is missing; an agent without servers serves nobody"))
	case file.Tunnels < 0 || file.Tunnels > 64:
		return nil, c.errorAt("tunnels", errors.New("must be 1 to 64; leave it out for the default"))
	}
	if file.Join != "" && file.Join != "gcp" {
		return nil, c.errorAt("join", errors.New("must be gcp; leave it out to join with a token"))
	}
	if file.Join != "" && file.Token != "" {
		return nil, c.errorAt("join", errors.New("stands beside token; say one of them"))
	}
	token, err := c.secret(file.Token)
	if err != nil {
		return nil, c.errorAt("token", err)
	}
	servers := map[string]agent.Upstream{}
	for name, s := range file.Servers {
		if s.Agent != "" {
			return nil, c.errorAt("servers."+name+".agent", errors.New("is for broker.yaml; here stands how the server is reached"))
		}
		if servers[name], err = c.upstream(name, s); err != nil {
			return nil, c.errorAt("servers."+name, err)
		}
	}
	link := &agent.Link{
		Agent:  &agent.Agent{Servers: servers},
		Broker: file.Broker, Name: file.Name, Pin: file.CA, Token: token,
		Dir: c.resolve(file.Data), Tunnels: file.Tunnels, Tunnel: stream.TunnelOptions{},
	}
	used := func(u credential.Use) { link.Used(agent.Used(u)) }
	c.used.Store(&used)
	if file.Join == "gcp" {
		link.Attest = agent.InstanceToken
	}
	return link, nil
}
