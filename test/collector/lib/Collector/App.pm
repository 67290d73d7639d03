package Collector::App;

# The development collector as a Mojolicious application: the collector API under any path prefix, the admin API under
# /_/ and a page for people at /.

use Mojo::Base 'Mojolicious';
use strict;
use warnings;

use Collector::Faults qw(describe_fault new_fault reject_errors take_fault);
use Collector::Json qw(decode_json_bytes encode_json_bytes is_boolean is_string);
use Collector::Reply qw(send_reply);
use Collector::Store;
use Collector::Validator qw(validate_batch validate_publish);
use Encode ();
use Mojo::IOLoop;
use Mojo::Log;
use Mojo::Util ();
use Scalar::Util ();

use constant {
    MAX_REQUEST_SIZE => 256 * 1024 * 1024,
    MAX_FAULTS       => 10_000,
};

has [qw(store journal)];
has page => '';

my $OPERATION = qr{\A(.*?)/(context/batch|context|experiment|healthy)/?\z}s;

my %METHODS = (
    'healthy'       => ['GET'],
    'context'       => ['GET', 'PUT', 'POST'],
    'context/batch' => ['PUT'],
    'experiment'    => ['GET'],
);

# A whole number of any size, or a semantic version.
my $SEMVER_ID = qr/[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*/;
my $VERSION   = qr/\A(?:-?[0-9]{1,19}|[0-9]+\.[0-9]+\.[0-9]+(?:-$SEMVER_ID)?(?:\+$SEMVER_ID)?)\z/;

sub startup {
    my ($self) = @_;

    $self->mode('production');
    $self->secrets(['no sessions here']);
    $self->max_request_size(MAX_REQUEST_SIZE);
    $self->renderer->compress(0)->paths([]);
    $self->static->paths([])->classes([]);

    # Clients that send "Expect: 100-continue" (libcurl does for large bodies) need not wait for their timeout.
    $self->hook(
        after_build_tx => sub {
            my ($tx) = @_;
            Scalar::Util::weaken($tx);
            $tx->req->content->on(
                body => sub {
                    return unless ($tx->req->headers->header('Expect') // '') =~ /\A100-continue\z/i;
                    my $stream = Mojo::IOLoop->stream($tx->connection) or return;
                    $stream->write("HTTP/1.1 100 Continue\r\n\r\n");
                }
            );
        }
    );

    # No HTML pages for errors of the program itself.
    $self->hook(
        around_dispatch => sub {
            my ($next, $c) = @_;
            return if eval { $next->(); 1 };
            my $error = $@;
            $c->app->log->error("$error");
            _json($c, {code => 500, message => "the development collector failed: $error"}, 500);
        }
    );

    my $routes = $self->routes;
    $routes->get('/' => sub { _page($_[0]) });

    my $admin = $routes->under('/_' => \&_only_loopback);
    $admin->get('/requests' => \&_get_requests);
    $admin->delete('/requests' => \&_delete_requests);
    for my $list (qw(exposures goals attributes)) {
        $admin->get("/$list" => sub { _get_events($_[0], $list) });
    }
    $admin->get('/stats' => \&_get_stats);
    $admin->get('/data' => \&_get_data);
    $admin->put('/data' => \&_put_data);
    $admin->delete('/data' => \&_delete_data);
    $admin->get('/keys' => \&_get_keys);
    $admin->put('/keys' => \&_put_keys);
    $admin->delete('/keys' => \&_delete_keys);
    $admin->get('/options' => \&_get_options);
    $admin->put('/options' => \&_put_options);
    $admin->get('/faults' => \&_get_faults);
    $admin->post('/faults' => \&_post_faults);
    $admin->delete('/faults' => \&_delete_faults);
    $admin->any('/*rest' => {rest => ''} => sub { _error($_[0], 404, 'there is no such admin call') });

    $routes->any('/*anything' => \&_api);
}

# The collector API

sub _api {
    my ($c) = @_;

    my $tx    = $c->render_later->tx;
    my $store = $c->app->store;
    my $req   = $c->req;
    my $path  = $req->url->path->to_string;
    my ($prefix, $operation) = $path =~ $OPERATION;
    my $space = defined $operation ? $store->space(Collector::Store::space_name($prefix)) : undef;

    my %headers = map { lc $_ => $req->headers->header($_) } @{$req->headers->names};
    my $record  = $store->add_record(
        {
            space     => $space ? $space->{name} : '/',
            method    => $req->method,
            path      => $path,
            operation => $space ? $operation : undef,
            query     => $req->query_params->to_hash,
            headers   => {%headers, map { exists $headers{$_} ? ($_ => _mask($headers{$_})) : () }
                    qw(x-api-key authorization cookie)},
            body      => $req->body,
            uncounted => $space ? 0 : 1,
        }
    );
    my $journal = $c->app->journal;
    my $end     = sub { $store->end_record($record, @_) };
    $tx->on(
        finish => sub {
            $end->('aborted', undef);
            # not before the answer has been written
            $journal->end_of_request($record) if $journal;
            $c->app->log->info(join ' ', map { $_ // '-' } @$record{qw(n method path state status)});
        }
    );

    my ($reply, $publish) = _natural_reply($c, $space, $record, \%headers);

    my $fault = $space ? take_fault($space->{faults}, $record, $publish ? $publish->{requests} : undef) : undef;
    my $accepted = $publish && $reply->{status} == 200;
    if ($fault) {
        my %shown = %$fault;
        delete @shown{qw(left seen used body body_base64 delay_from)};
        $record->{fault} = \%shown;
        my $replaced = _fault_reply($fault, $reply, $publish);
        $accepted &&= defined $fault->{accept} ? $fault->{accept} : !$replaced;
    }
    if ($publish && $publish->{result}) {
        $record->{events}   = $publish->{result}{events};
        $record->{accepted} = $accepted ? 1 : 0;
        $store->count_events($space, $publish->{result}, $accepted);
        $journal->request($record, $publish->{requests}) if $journal;
    }

    send_reply($c, $reply, $fault, $end, sub { $record->{state} eq 'pending' });
}

# What a collector without faults answers, and for publish requests what was published.
sub _natural_reply {
    my ($c, $space, $record, $headers) = @_;

    my $store     = $c->app->store;
    my $operation = $record->{operation};
    my $method    = $record->{method};
    return _error_reply(404, 'there is no such call') unless $space;
    if (my $error = $c->req->error) {
        my $status = $c->req->is_limit_exceeded ? 413 : 400;
        return _error_reply($status, $error->{message});
    }
    my $allowed = $METHODS{$operation};
    if (!grep { $_ eq $method } @$allowed) {
        my ($reply) = _error_reply(405, "$operation cannot be called with $method");
        $reply->{headers}{Allow} = join ', ', @$allowed;
        return $reply;
    }
    return _json_reply(200, {ok => \1}) if $operation eq 'healthy';

    my $keys = $store->keys_of($space);
    my $key  = $headers->{'x-api-key'};
    $record->{key}
        = !@$keys                     ? 'not checked'
        : !defined $key               ? 'missing'
        : (grep { $_ eq $key } @$keys) ? 'accepted'
        :                               'refused';
    return _error_reply(401, 'the API key is missing or unknown') if $record->{key} =~ /\A(?:missing|refused)\z/;

    return _context_reply($c, $space) if $operation eq 'context' && $method eq 'GET';
    return _error_reply(404, 'batches are switched off') if $operation eq 'context/batch' && !$store->batch_of($space);

    for my $name (qw(X-Agent X-Environment X-Application X-Application-Version)) {
        my $value = $headers->{lc $name};
        return _error_reply(400, "the header $name is required") unless defined $value && length $value;
    }
    return _error_reply(400, 'the header X-Application-Version must be an int64 or a semantic version')
        if $headers->{'x-application-version'} !~ $VERSION;
    return _experiment_reply($c, $space, $headers) if $operation eq 'experiment';

    return _error_reply(400, 'the header Content-Type must be application/json')
        if ($headers->{'content-type'} // '') !~ m{\Aapplication/json\s*(?:;|\z)}i;
    return _error_reply(501, 'the development collector assigns nothing itself') if $method eq 'POST';

    my $body = eval { decode_json_bytes($record->{body}) };
    if (my $error = $@) {
        chomp $error;
        my $message = {subject => 'body', message => "the body is not JSON: $error"};
        return _json_reply(400, {ok => \0, errors => [$message]});
    }
    my ($result, @requests);
    if ($operation eq 'context') {
        @requests = ($body);
        $result   = validate_publish($body);
    }
    else {
        @requests = @{$body->{requests}} if ref $body eq 'HASH' && ref $body->{requests} eq 'ARRAY';
        $result   = validate_batch($body);
    }
    my %answer = (ok => $result->{ok} ? \1 : \0);
    for my $kind (qw(errors warnings)) {
        $answer{$kind} = $record->{$kind} = $result->{$kind} if @{$result->{$kind}};
    }
    my ($reply) = _json_reply($result->{ok} ? 200 : 400, \%answer);
    return ($reply, {result => $result, requests => \@requests});
}

sub _context_reply {
    my ($c, $space) = @_;
    my $bytes = $c->app->store->context_data($space, map { scalar $c->req->query_params->param($_) }
            qw(application environment));
    return _error_reply(404, 'there is no data for this application and environment') unless defined $bytes;
    my $tag   = '"' . Mojo::Util::md5_sum($bytes) . '"';
    my %reply = (status => 200, headers => {ETag => $tag}, type => 'application/json', body => $bytes);
    @reply{qw(status body)} = (304, '') if ($c->req->headers->if_none_match // '') eq $tag;
    return \%reply;
}

sub _experiment_reply {
    my ($c, $space, $headers) = @_;
    my $bytes = $c->app->store->context_data($space,
        map { Encode::decode('UTF-8', $headers->{$_}) } qw(x-application x-environment));
    my $data = eval { decode_json_bytes($bytes // '') };
    return _error_reply(500, 'the context data cannot be read') unless ref $data eq 'HASH';
    my @experiments;
    for my $experiment (@{$data->{experiments} || []}) {
        my %shown = map { $_ => $experiment->{$_} } qw(id name iteration split trafficSplit);
        $shown{variants} = [map { {name => $_->{name}, config => $_->{config}} } @{$experiment->{variants} || []}];
        push @experiments, \%shown;
    }
    return _json_reply(200, {ok => \1, experiments => \@experiments});
}

sub _json_reply {
    my ($status, $value) = @_;
    return {status => $status, headers => {}, type => 'application/json', body => encode_json_bytes($value)};
}

sub _error_reply {
    my ($status, $message) = @_;
    return _json_reply($status, {code => $status, message => $message});
}

# Changes the reply to what the fault asks for. Returns true if the publish request is not taken in then.
sub _fault_reply {
    my ($fault, $reply, $publish) = @_;

    my $error
        = $fault->{bad_request}          ? [_bad_request_error($fault)]
        : defined $fault->{reject_goal}  ? reject_errors($fault, $publish->{requests})
        :                                  undef;
    if ($error) {
        %$reply = %{_json_reply(400, {ok => \0, errors => $error})};
    }
    if (my $html = $fault->{html}) {
        my $page = is_string($html) ? $html : '<!DOCTYPE html><html><head><title>Welcome</title></head>'
            . '<body><h1>Please sign in to use this network</h1></body></html>';
        %$reply = (status => 200, headers => {}, type => 'text/html; charset=utf-8', body => Encode::encode('UTF-8', $page));
    }
    if (defined $fault->{huge}) {
        %$reply = (status => 200, headers => {}, type => 'application/json', body => '', huge => 0 + $fault->{huge});
    }
    if (defined(my $status = $fault->{status})) {
        if (!$error && !$fault->{html} && !defined $fault->{huge}) {
            my ($plain) = _error_reply($status, 'a fault asked for by the admin API');
            $plain->{body} = '' if $status == 204 || $status == 304;
            %$reply = %$plain;
        }
        $reply->{status} = $status;
    }
    if (exists $fault->{body}) {
        my $body = $fault->{body};
        $reply->{body} = is_string($body) ? Encode::encode('UTF-8', $body) : encode_json_bytes($body);
        delete $reply->{huge};
    }
    if (defined $fault->{body_base64}) {
        $reply->{body} = Mojo::Util::b64_decode($fault->{body_base64});
        delete $reply->{huge};
    }
    $reply->{type} = $fault->{content_type} if defined $fault->{content_type};
    $reply->{headers}{$_} = "$fault->{headers}{$_}" for keys %{$fault->{headers} || {}};

    return 1 if $error || grep { $fault->{$_} } qw(reset hang garbage html);
    return 1 if defined $fault->{huge};
    return $reply->{status} >= 300 ? 1 : 0;
}

sub _bad_request_error {
    my ($fault) = @_;
    my $wanted = ref $fault->{bad_request} eq 'HASH' ? $fault->{bad_request} : {};
    my %error  = (subject => 'request', message => 'refused by a fault', %$wanted);
    $error{batchIndex} = $fault->{batchIndex} if defined $fault->{batchIndex};
    return \%error;
}

# Shows enough of a secret to tell two apart, and not more.
sub _mask {
    my ($secret) = @_;
    my $visible = int(length($secret) / 4);
    return substr($secret, 0, $visible > 4 ? 4 : $visible) . '***';
}

# The admin API

sub _only_loopback {
    my ($c) = @_;
    return 1 if ($c->tx->remote_address // '') =~ /\A(?:::ffff:)?127\.|\A::1\z/;
    _error($c, 403, 'the admin API answers on the loopback interface only');
    return undef;
}

sub _json {
    my ($c, $value, $status) = @_;
    $c->res->headers->content_type('application/json')->cache_control('no-store');
    $c->render(data => encode_json_bytes($value), status => $status // 200);
    return;
}

sub _error {
    my ($c, $status, $message) = @_;
    return _json($c, {code => $status, message => $message}, $status);
}

sub _page {
    my ($c) = @_;
    return unless _only_loopback($c);
    my $policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'";
    $c->res->headers->content_type('text/html; charset=utf-8')->cache_control('no-store')
        ->header('Content-Security-Policy' => $policy);
    $c->render(data => $c->app->page);
}

# The space named by the query; answers with an error and returns undef if it is missing.
sub _named_space {
    my ($c) = @_;
    my $name = $c->req->query_params->param('space');
    if (!defined $name || !length $name) {
        _error($c, 400, 'the query field "space" is required, such as space=/v1');
        return undef;
    }
    my $space = $c->app->store->space(Collector::Store::space_name($name));
    _error($c, 400, 'there are too many spaces') unless $space;
    return $space;
}

# The spaces a listing is about: the named one or all.
sub _listed_spaces {
    my ($c) = @_;
    my $store = $c->app->store;
    my $name  = $c->req->query_params->param('space');
    return $store->spaces unless defined $name && length $name;
    return grep { $_->{name} eq Collector::Store::space_name($name) } $store->spaces;
}

# The wanted records, oldest first: space, since, method, path, state, and the newest $last of them.
sub _wanted_records {
    my ($c, $last, $wanted) = @_;

    my $query = $c->req->query_params->to_hash;
    my $since = ($query->{since} // '') =~ /\A([0-9]{1,15})\z/ ? $1 : 0;
    my %equal;
    $equal{space}  = Collector::Store::space_name($query->{space}) if length($query->{space} // '');
    $equal{method} = uc $query->{method}                           if length($query->{method} // '');
    $equal{state}  = $query->{state}                               if length($query->{state} // '');
    $equal{$query->{path} =~ m{\A/} ? 'path' : 'operation'} = $query->{path} if length($query->{path} // '');

    my $records = $c->app->store->records_since($since);
    my @found;
    for my $record (reverse @$records) {
        last if defined $last && @found >= $last;
        next if grep { ($record->{$_} // '') ne $equal{$_} } keys %equal;
        next if $wanted && !$wanted->($record);
        push @found, $record;
    }
    return reverse @found;
}

# How many of the newest entries are wanted; undef: all.
sub _last {
    my ($c) = @_;
    return ($c->req->query_params->param('last') // '') =~ /\A([0-9]{1,9})\z/ ? $1 : undef;
}

sub _get_requests {
    my ($c) = @_;
    my $bodies = ($c->req->query_params->param('bodies') // 1) ne '0';
    _json($c, [map { _shown_record($_, $bodies) } _wanted_records($c, _last($c))]);
}

sub _shown_record {
    my ($record, $with_body) = @_;
    my %shown = (
        (map { $_ => $record->{$_} } qw(n space method path operation query headers state status key)),
        time        => int($record->{time} * 1000),
        body_length => length $record->{body},
        map { defined $record->{$_} ? ($_ => $record->{$_}) : () } qw(events errors warnings fault),
    );
    $shown{duration_ms} = int($record->{duration} * 1000 + 0.5) if defined $record->{duration};
    $shown{accepted} = $record->{accepted} ? \1 : \0 if defined $record->{accepted};
    if ($with_body) {
        my $text = eval { Encode::decode('UTF-8', $record->{body}, Encode::FB_CROAK | Encode::LEAVE_SRC) };
        $shown{body_encoding} = 'latin1' unless defined $text;
        $shown{body} = $text // $record->{body};
    }
    return \%shown;
}

sub _delete_requests {
    my ($c) = @_;
    my $name = $c->req->query_params->param('space');
    $name = Collector::Store::space_name($name) if defined $name;
    _json($c, {ok => \1, forgotten => $c->app->store->forget($name)});
}

# The events of all accepted publish requests (of all of them with all=1), one by one.
sub _get_events {
    my ($c, $list) = @_;

    my $query    = $c->req->query_params->to_hash;
    my $all      = $query->{all};
    my $name     = $query->{name};
    my $last     = _last($c);
    my @records  = _wanted_records($c, undef, sub { $_[0]{events} && $_[0]{events}{$list} && ($all || $_[0]{accepted}) });

    my @events;
    for my $record (reverse @records) {
        last if defined $last && @events >= $last;
        my $body = decode_json_bytes($record->{body});
        my @requests = $record->{operation} eq 'context' ? ($body) : @{$body->{requests}};
        my @of_record;
        for my $batch_index (0 .. $#requests) {
            my $request = $requests[$batch_index];
            next unless ref $request eq 'HASH' && ref $request->{$list} eq 'ARRAY';
            my $event_index = -1;
            for my $event (@{$request->{$list}}) {
                $event_index++;
                next unless ref $event eq 'HASH';
                next if defined $name && ($event->{name} // '') ne $name;
                push @of_record, {
                    %$event,
                    request     => $record->{n},
                    space       => $record->{space},
                    batchIndex  => $batch_index,
                    eventIndex  => $event_index,
                    application => $record->{headers}{'x-application'},
                    environment => $record->{headers}{'x-environment'},
                    accepted    => $record->{accepted} ? \1 : \0,
                    map { $_ => $request->{$_} } qw(units publishedAt hashed historic),
                };
            }
        }
        unshift @events, @of_record;
    }
    splice @events, 0, @events - $last if defined $last && @events > $last;
    _json($c, \@events);
}

sub _get_stats {
    my ($c) = @_;
    my $store = $c->app->store;
    my %spaces;
    for my $space (_listed_spaces($c)) {
        my $counts = $space->{counts};
        my @requests;
        for my $key (sort keys %{$counts->{requests}}) {
            my ($method, $operation, $status) = split / /, $key;
            push @requests, {method => $method, operation => $operation, status => $status, count => $counts->{requests}{$key}};
        }
        $spaces{$space->{name}} = {
            total    => $counts->{total},
            requests => \@requests,
            keys     => [map { _mask($_) } @{$store->keys_of($space)}],
            batch    => $store->batch_of($space) ? \1 : \0,
            own_data => %{$space->{data}} ? \1 : \0,
            faults   => scalar @{$space->{faults}},
            map { $_ => $counts->{$_} } qw(events refused exposures_by_name goals_by_name),
        };
    }
    _json($c, {
        spaces     => \%spaces,
        last       => $store->{last},
        kept       => scalar @{$store->{records}},
        kept_bytes => $store->{bytes},
        forgotten  => $store->{forgotten},
        pid        => $$,
    });
}

# The data a client of the space would get. Looking does not create the space.
sub _get_data {
    my ($c) = @_;
    my $store = $c->app->store;
    my ($name, $application, $environment)
        = map { scalar $c->req->query_params->param($_) } qw(space application environment);
    my $space = $store->known_space(Collector::Store::space_name($name // '')) || {data => {}};
    my $bytes = $store->context_data($space, $application, $environment);
    return _error($c, 404, 'there is no data') unless defined $bytes;
    $c->res->headers->content_type('application/json')->cache_control('no-store');
    $c->render(data => $bytes);
}

sub _put_data {
    my ($c) = @_;
    my $space = _named_space($c) or return;
    my ($application, $environment) = map { scalar $c->req->query_params->param($_) } qw(application environment);
    $c->app->store->set_data($space, $application, $environment, $c->req->body);
    _json($c, {ok => \1, bytes => length $c->req->body});
}

sub _delete_data {
    my ($c) = @_;
    my $space = _named_space($c) or return;
    $c->app->store->clear_data($space);
    _json($c, {ok => \1});
}

sub _get_keys {
    my ($c) = @_;
    _json($c, {map { $_->{name} => [map { _mask($_) } @{$c->app->store->keys_of($_)}] } _listed_spaces($c)});
}

sub _put_keys {
    my ($c) = @_;
    my $space = _named_space($c) or return;
    my $keys  = eval { decode_json_bytes($c->req->body) };
    return _error($c, 400, 'the body must be a JSON array of strings')
        unless ref $keys eq 'ARRAY' && !grep { !is_string($_) || !length } @$keys;
    $space->{keys} = [map { Encode::encode('UTF-8', $_) } @$keys];
    _json($c, {ok => \1, keys => scalar @$keys});
}

sub _delete_keys {
    my ($c) = @_;
    my $space = _named_space($c) or return;
    $space->{keys} = undef;
    _json($c, {ok => \1});
}

sub _get_options {
    my ($c) = @_;
    _json($c, {map { $_->{name} => {batch => $c->app->store->batch_of($_) ? \1 : \0} } _listed_spaces($c)});
}

sub _put_options {
    my ($c) = @_;
    my $space   = _named_space($c) or return;
    my $options = eval { decode_json_bytes($c->req->body) };
    return _error($c, 400, 'the body must be an object such as {"batch":false}')
        unless ref $options eq 'HASH' && !grep { $_ ne 'batch' || !is_boolean($options->{$_}) } keys %$options;
    $space->{batch} = $options->{batch} ? 1 : 0 if exists $options->{batch};
    _json($c, {ok => \1});
}

sub _get_faults {
    my ($c) = @_;
    _json($c, {map { $_->{name} => [map { describe_fault($_) } @{$_->{faults}}] } _listed_spaces($c)});
}

sub _post_faults {
    my ($c) = @_;
    my $space = _named_space($c) or return;
    my $store = $c->app->store;
    my @new   = eval {
        my $body = decode_json_bytes($c->req->body);
        map { new_fault($_, ++$store->{last_fault}) } ref $body eq 'ARRAY' ? @$body : ($body);
    };
    if (my $error = $@) {
        chomp $error;
        return _error($c, 400, $error);
    }
    my @kept = $c->param('replace') ? () : @{$space->{faults}};
    return _error($c, 400, 'there are too many faults') if @kept + @new > MAX_FAULTS;
    $space->{faults} = [@kept, @new];
    _json($c, {ok => \1, ids => [map { $_->{id} } @new]});
}

sub _delete_faults {
    my ($c) = @_;
    my $gone = 0;
    for my $space (_listed_spaces($c)) {
        $gone += @{$space->{faults}};
        $space->{faults} = [];
    }
    _json($c, {ok => \1, cleared => $gone});
}

1;
