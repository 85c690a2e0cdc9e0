module github.com/smtplb/smtplb/bench

go 1.25.0

require (
	github.com/emersion/go-smtp v0.25.1
	github.com/jordan-wright/email v4.0.1-0.20210109023952-943e75fe5223+incompatible
	github.com/knadh/smtppool v1.2.1
	github.com/smtplb/smtplb v0.0.0
	github.com/wneessen/go-mail v0.8.1
)

require golang.org/x/time v0.15.0 // indirect

require (
	github.com/emersion/go-sasl v0.0.0-20241020182733-b788ff22d5a6 // indirect
	github.com/google/go-cmp v0.7.0
	github.com/sony/gobreaker/v2 v2.4.0 // indirect
	golang.org/x/crypto v0.54.0 // indirect
	golang.org/x/net v0.56.0 // indirect
	golang.org/x/text v0.40.0 // indirect
)

replace github.com/smtplb/smtplb => ../
