package console

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"strings"
	"time"

	"example.com/broker/broker/grant"
	"example.com/broker/broker/identity"
	"example.com/broker/broker/policy"
)

//go:embed pages
var files embed.FS

var templates = template.Must(template.New("").Funcs(template.FuncMap{
	"join":  strings.Join,
	"at":    func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") },
	"lasts": lasts,
	"size":  size,
}).ParseFS(files, "pages/*.html"))

// lasts writes a duration as people do: 1h, not 1h0m0s.
func lasts(d grant.Duration) string {
	text := time.Duration(d).String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

// size writes a number of bytes as people do, in units of 1024.
func size(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	v, i := float64(n), 0
	for ; v >= 1024 && i < len(units)-1; i++ {
		v /= 1024
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}

// pages adds the HTML pages to mux.
func (c *console) pages(mux *http.ServeMux) {
	page := func(pattern string, do func(r *http.Request, by identity.Identity) (view, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) { c.show(w, r, do) })
	}
	page("GET /requests", c.listPage)
	page("GET /requests/{id}", c.requestPage)
	page("POST /requests/{id}", c.decideForm)
	page("POST /grants/{id}/revoke", c.revokeForm)
	page("GET /access/{server}", c.accessPage)
	page("POST /access/{server}", c.accessForm)
	page("GET /log", c.logPage)
	mux.HandleFunc("GET /style.css", func(w http.ResponseWriter, r *http.Request) {
		http.ServeFileFS(w, r, files, "pages/style.css")
	})
}

// A view is a page to be shown, or where to go instead.
type view struct {
	template string
	data     any
	redirect string
}

// frame is what every page has.
type frame struct {
	Title string
	By    identity.Identity
	Visit bool // signed in with a browser, so that one can sign out
	Admin bool // sees how the log stands
	Data  any
}

func (c *console) show(w http.ResponseWriter, r *http.Request, do func(*http.Request, identity.Identity) (view, error)) {
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'")
	h.Set("Cache-Control", "no-store")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-Content-Type-Options", "nosniff")
	r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	status := http.StatusOK
	by, err := c.Who(r)
	var v view
	if err != nil && c.Login != "" && len(r.TLS.PeerCertificates) == 0 && r.Method == http.MethodGet {
		v = view{redirect: c.Login + "?" + url.Values{"next": {r.URL.RequestURI()}}.Encode()}
	} else if err != nil {
		status, v = http.StatusUnauthorized, view{template: "failure.html", data: err.Error()}
	} else if v, err = do(r, by); err != nil {
		var text string
		status, text = c.failure(err)
		v = view{template: "failure.html", data: text}
	}
	if v.redirect != "" {
		http.Redirect(w, r, v.redirect, http.StatusSeeOther)
		return
	}
	title := strings.TrimSuffix(v.template, ".html")
	var out bytes.Buffer
	if err := templates.ExecuteTemplate(&out, v.template, frame{strings.ToUpper(title[:1]) + title[1:], by, err == nil && len(r.TLS.PeerCertificates) == 0, c.Recorded != nil && c.Desk.Admin(by), v.data}); err != nil {
		c.Log.Error("a page cannot be made", "page", v.template, "error", err)
		http.Error(w, "this page cannot be shown", http.StatusInternalServerError)
		return
	}
	w.WriteHeader(status)
	w.Write(out.Bytes())
}

func (c *console) listPage(r *http.Request, by identity.Identity) (view, error) {
	recent, err := c.Desk.Requests(r.Context(), by, 100)
	if err != nil {
		return view{}, err
	}
	grants, err := c.Desk.Grants(r.Context(), by, false, 100)
	return view{template: "requests.html", data: map[string]any{"Pending": c.Desk.Pending(by), "Recent": recent, "Grants": grants}}, err
}

func (c *console) requestPage(r *http.Request, by identity.Identity) (view, error) {
	req, err := c.Desk.Request(r.Context(), r.PathValue("id"), by)
	if err != nil {
		return view{}, err
	}
	mayDecide := req.State == grant.Pending && !strings.EqualFold(req.Subject, by.Subject) && req.Approvers.Include(by)
	for _, d := range req.Decisions {
		mayDecide = mayDecide && !strings.EqualFold(d.By, by.Subject)
	}
	if mayDecide {
		if err := c.Desk.Viewed(r.Context(), req, by); err != nil {
			return view{}, err
		}
	}
	return view{template: "request.html", data: map[string]any{"Request": req, "MayDecide": mayDecide}}, nil
}

func (c *console) decideForm(r *http.Request, by identity.Identity) (view, error) {
	var yes bool
	switch r.PostFormValue("decision") {
	case "approve":
		yes = true
	case "deny":
	default:
		return view{}, badRequest{errors.New("the form says neither approve nor deny")}
	}
	req, err := c.Desk.Decide(r.Context(), r.PathValue("id"), by, grant.Vote{Yes: yes, Comment: r.PostFormValue("comment"), Via: "web"})
	return view{redirect: "/requests/" + req.ID}, err
}

func (c *console) revokeForm(r *http.Request, by identity.Identity) (view, error) {
	_, err := c.Desk.Revoke(r.Context(), r.PathValue("id"), by, r.PostFormValue("reason"), "web")
	return view{redirect: "/requests"}, err
}

func (c *console) accessPage(r *http.Request, by identity.Identity) (view, error) {
	server := r.PathValue("server")
	t := c.Terms(by, server)
	if t.Access != policy.Approval {
		return view{}, grant.ErrNotFound
	}
	return view{template: "access.html", data: map[string]any{
		"Server": server, "Asking": t.Asking(), "Most": grant.Duration(t.Asking().MaxDuration), "MayBreakGlass": t.MayBreakGlass(),
	}}, nil
}

func (c *console) accessForm(r *http.Request, by identity.Identity) (view, error) {
	a := Ask{Server: r.PathValue("server"), Reason: r.PostFormValue("reason"), BreakGlass: r.PostFormValue("break_glass") != ""}
	if text := r.PostFormValue("duration"); text != "" {
		if err := a.Duration.UnmarshalText([]byte(text)); err != nil {
			return view{}, badRequest{errors.New("a duration is written like 30m or 1h")}
		}
	}
	req, err := c.askFor(r, by, a)
	return view{redirect: "/requests/" + req.ID}, err
}

func (c *console) logPage(r *http.Request, by identity.Identity) (view, error) {
	data, err := c.recorded(r, by)
	return view{template: "log.html", data: data}, err
}
