package Conformance::App;

# The wrapper as an application: the development collector, which keeps payloads, serves them, and checks what it is
# sent, with the wrapper's calls before it.  A payload ID is a space of the collector's.  A context is a connection to a
# database of its own, whose endpoint is that space.

use Mojo::Base 'Collector::App';
use strict;
use warnings;

use Collector::Faults qw(new_fault);
use Collector::Store;
use Conformance::Calls qw(%CONTEXT_GET %CONTEXT_POST %DIAGNOSTIC $CREATE $CREATED $EVENTS query);
use Conformance::Database;
use Encode ();
use File::Spec ();
use Mojo::JSON qw(decode_json to_json);
use Mojo::Promise;
use Mojo::URL;

use constant {
    KEEP_REQUESTS => 10_000,
    KEEP_BYTES    => 256 * 1024 * 1024,
};

my @CAPABILITIES = qw(diagnostics attrsSeq publishFail variableKeysMap globalCustomFieldKeys getUnits getAttributes
    readyError);

has socket => undef;    # folder of the server's socket
has url    => undef;    # of this application
has admin => sub { Conformance::Database->connect($_[0]->socket, 'conformance') };

# Serves what was stored, and nothing else: any other payload ID is answered with 404.
has store => sub {
    Collector::Store->new(
        data       => File::Spec->devnull,
        keys       => ['conformance'],
        keep       => KEEP_REQUESTS,
        keep_bytes => KEEP_BYTES,
    );
};
has contexts => sub { {} };

sub startup {
    my ($self) = @_;

    my $routes = $self->routes;
    $routes->get('/health' => \&_health);
    $routes->get('/capabilities' => sub { _send($_[0], 200, to_json({map { $_ => \1 } @CAPABILITIES})) });
    $routes->put('/context_payload/#id' => \&_put_payload);
    $routes->post('/diagnostic' => \&_diagnostic);
    $routes->post('/context' => \&_create);
    $routes->delete('/context/#context' => \&_delete);
    for my $method (['get', \%CONTEXT_GET], ['post', \%CONTEXT_POST]) {
        my ($add, $calls) = @$method;
        for my $call (keys %$calls) {
            $routes->$add("/context/#context/$call" => sub { _call($_[0], $call, $calls->{$call}) });
        }
    }
    $routes->post('/context/#context/publishFail' => \&_publish_fail);
    $routes->any(['GET', 'POST'] => '/context/#context/*call' => sub { _error($_[0], 400, 'there is no such call') });

    $self->SUPER::startup;
}

# Calls without a context

sub _health {
    my ($c) = @_;
    _answer($c, $c->app->admin->row(<<'END')->then(sub { $_[0] }));
SELECT json_build_object('status', 'healthy', 'sdk', 'postgresql', 'version', extversion)
FROM pg_extension WHERE extname = 'absmartly'
END
}

sub _put_payload {
    my ($c) = @_;
    _answer($c, $c->app->_keep_payload('/context_payload/' . $c->param('id'), 'data', _body($c))
            ->then(sub { to_json({success => \1}) }));
}

sub _diagnostic {
    my ($c) = @_;
    my $operation = (_decoded($c) || {})->{operation} // '';
    my $query = $DIAGNOSTIC{$operation} or return _error($c, 400, "unknown operation: $operation");
    _answer($c, $c->app->admin->row($query, _body($c))->then(sub { _result($_[0], '[]') }));
}

# Keeps a field of a body as a payload, to the byte: json is left as it came.
sub _keep_payload {
    my ($self, $space, $field, $body) = @_;

    return $self->admin->row(query("j -> '$field'"), $body)->then(
        sub {
            my ($json) = @_;
            return Mojo::Promise->reject("there is no \"$field\"") unless defined $json;
            $self->store->set_data($self->store->space($space), undef, undef, Encode::encode('UTF-8', $json));
        }
    );
}

# Contexts

sub _create {
    my ($c) = @_;

    my $self    = $c->app;
    my $body    = _body($c);
    my $request = _decoded($c) or return _error($c, 400, 'the body must be an object');
    my $options = $request->{options} || {};
    my $name    = 'context_' . ++$self->{last_context};
    # without an endpoint one that nothing is stored under: the load fails, unless the data is in the request
    my $endpoint = $request->{endpoint} // $self->url . "/context_payload/$name";
    my $context  = {name => $name, space => Collector::Store::space_name(Mojo::URL->new($endpoint)->path->to_string)};
    my $throttle = $options->{payloadThrottle};

    # The throttle counts from the answer to this call, however early the worker asks: so the context is not ready before.
    my $answered = Mojo::Promise->new;
    $self->_fault($context, 'GET', delay_ms => $throttle)->{delay_from} = $answered if $throttle;

    my $created = $self->_create_database($name, $endpoint)->then(
        sub {
            $context->{database} = Conformance::Database->connect($self->socket, $name);
            return $context->{database}->row($CREATE, $body);
        }
    )->then(
        sub {
            $self->contexts->{$name} = $context;
            return $throttle ? undef : $context->{database}->row('SELECT absmartly_context_wait_until_ready()');
        }
    )->then(sub { $self->_run($context, $CREATED, to_json({contextId => $name})) });

    _answer($c, $created->catch(
        sub {
            my ($error) = @_;
            delete $self->contexts->{$name};
            $self->_drop($context);
            return Mojo::Promise->reject($error);
        }
    )->finally(sub { $answered->resolve }));
}

sub _delete {
    my ($c) = @_;

    my $context = _context($c) or return;
    my $self = $c->app;
    delete $self->contexts->{$context->{name}};
    _answer($c, $context->{database}->in_turn(sub { $self->_drop($context) })->then(sub { _result('"deleted"', '[]') }));
}

sub _call {
    my ($c, $call, $query) = @_;

    my $context = _context($c) or return;
    my $self    = $c->app;
    my $body    = _body($c);
    my $given   = $call eq 'refresh' && exists((_decoded($c) || {})->{newData});
    my $before  = $given ? $self->_keep_payload($context->{space}, 'newData', $body) : Mojo::Promise->resolve;
    my $after   = $call eq 'publish' || $call eq 'finalize';

    _answer($c, $before->then(sub { $self->_run($context, $query, $body) })
            ->finally(sub { $self->_end_fault($context, 'PUT') if $after }));
}

sub _publish_fail {
    my ($c) = @_;

    my $context = _context($c) or return;
    $c->app->_fault($context, 'PUT', status => 503);
    _send($c, 200, _result(undef, '[]'));
}

# Runs a query of a context's; a promise of the answer, with the events that the query caused.
sub _run {
    my ($self, $context, $query, $body) = @_;

    my $database = $context->{database};
    return $database->in_turn(
        sub {
            my ($result, $failed, $error);
            return $database->row_now($query, $body)
                ->then(sub { $result = $_[0] }, sub { ($failed, $error) = (1, @_) })
                ->then(sub { $database->row_now($EVENTS) })->then(
                sub {
                    my ($events) = @_;
                    $self->_look_at_requests($context);
                    return $failed ? Mojo::Promise->reject($error) : _result($result, $events);
                }
            );
        }
    );
}

# Lets the collector misbehave towards the context's worker; gives the fault.
sub _fault {
    my ($self, $context, $method, %action) = @_;
    my $fault = new_fault({match => {method => $method}, times => -1, %action}, 0);
    push @{$self->store->space($context->{space})->{faults}}, $fault;
    return $fault;
}

sub _end_fault {
    my ($self, $context, $method) = @_;
    my $faults = $self->store->space($context->{space})->{faults};
    @$faults = grep { $_->{match}{method} ne $method } @$faults;
}

# A worker that sends what the collector refuses fails the call, which otherwise might never show it.
sub _look_at_requests {
    my ($self, $context) = @_;

    for my $record (@{$self->store->records_since($context->{seen} // 0)}) {
        $context->{seen} = $record->{n};
        next unless $record->{space} eq $context->{space};
        my $status = $record->{status} // 200;
        my $refused = $status >= 400 && !$record->{fault} && !($record->{method} eq 'GET' && $status == 404);
        next unless $refused || $record->{errors} || $record->{warnings};

        my $found = to_json({map { $_ => $record->{$_} } grep { defined $record->{$_} } qw(status errors warnings)});
        my $text  = "the worker has sent a bad request: $record->{method} $record->{path}: $found";
        $self->log->error("$text\n$record->{body}");
        die {status => 500, error => $text};
    }
}

# Databases

sub _create_database {
    my ($self, $name, $endpoint) = @_;

    my $admin  = $self->admin;
    my $quoted = $admin->db->dbh->quote($endpoint);
    return $admin->in_turn(
        sub {
            $admin->row_now("CREATE DATABASE $name")
                ->then(sub { $admin->row_now("ALTER DATABASE $name SET absmartly.endpoint = $quoted") });
        }
    );
}

# Ends a context's session and drops its database; a promise.
sub _drop {
    my ($self, $context) = @_;

    $context->{database}->disconnect if $context->{database};
    return $self->admin->row("DROP DATABASE IF EXISTS $context->{name}")->then(
        sub {
            $self->_look_at_requests($context);
            $self->store->forget($context->{space});
            delete $self->store->{spaces}{$context->{space}};
        }
    )->catch(sub { my ($error) = @_; $self->log->error("$context->{name} is not dropped: " . _text($error)) });
}

# Requests and answers

sub _context {
    my ($c) = @_;
    my $name    = $c->param('context');
    my $context = $c->app->contexts->{$name};
    _error($c, 404, "there is no context $name") unless $context;
    return $context;
}

# A body's text
sub _body {
    my ($c) = @_;
    my $bytes = $c->req->body;
    return length $bytes ? Encode::decode('UTF-8', $bytes) : '{}';
}

# What it says, if it is an object
sub _decoded {
    my ($c) = @_;
    my $value = eval { decode_json(length $c->req->body ? $c->req->body : '{}') };
    return ref $value eq 'HASH' ? $value : undef;
}

# The server's texts of a result and of events; void is an empty text.
sub _result {
    my ($result, $events) = @_;
    my $json = length($result // '') ? $result : 'null';
    return qq({"result":$json,"events":$events});
}

# Sends the text that a promise gives, or its error.
sub _answer {
    my ($c, $promise) = @_;

    my $tx = $c->render_later->tx;
    $promise->then(sub { _send($c, 200, $_[0]) })->catch(
        sub {
            my ($error) = @_;
            _error($c, ref $error eq 'HASH' ? $error->{status} : 400, _text($error));
        }
    )->finally(sub { undef $tx });
}

sub _text {
    my ($error) = @_;
    return ref $error eq 'HASH' ? $error->{error} : "$error";
}

sub _error {
    my ($c, $status, $text) = @_;
    _send($c, $status, to_json({error => $text}));
}

sub _send {
    my ($c, $status, $text) = @_;
    $c->res->headers->content_type('application/json');
    $c->render(data => Encode::encode('UTF-8', $text), status => $status);
}

1;
